#include "peer_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>
#include <utility>

#include "core/format.h"

namespace tessera::cli {
namespace {

// Whether no thread of the process runs or could run. /proc/PID/task/TID/stat is "TID (name) STATE ...".
bool asleep(int pid) {
  std::error_code error;
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task", error)) {
    std::ifstream file(task.path() / "stat");
    std::string text;
    std::getline(file, text);
    const size_t end = text.rfind(')');
    if (end == std::string::npos || end + 2 >= text.size()) continue;  // the thread has ended
    if (text[end + 2] == 'R') return false;
  }
  return !error;
}

}  // namespace

Result<PeerProcess> PeerProcess::start(const std::vector<std::string>& arguments) {
  // A peer that ended is an error to report, not a signal to die of.
  std::signal(SIGPIPE, SIG_IGN);
  int to_peer[2], from_peer[2];
  if (pipe2(to_peer, O_CLOEXEC) != 0) return Status(StatusCode::resource_exhausted, "no pipe for the peer");
  if (pipe2(from_peer, O_CLOEXEC) != 0) {
    close(to_peer[0]);
    close(to_peer[1]);
    return Status(StatusCode::resource_exhausted, "no pipe for the peer");
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, to_peer[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, from_peer[1], STDOUT_FILENO);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  PeerProcess peer;
  peer.name_ = arguments[0];
  const int failure = posix_spawnp(&peer.pid_, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(to_peer[0]);
  close(from_peer[1]);
  peer.out_ = fdopen(to_peer[1], "w");
  peer.in_ = fdopen(from_peer[0], "r");
  if (failure != 0) {
    peer.pid_ = -1;
    return not_found(format("{} cannot be started (error {})", arguments[0], failure));
  }
  return peer;
}

PeerProcess& PeerProcess::operator=(PeerProcess&& other) noexcept {
  std::swap(name_, other.name_);
  std::swap(pid_, other.pid_);
  std::swap(in_, other.in_);
  std::swap(out_, other.out_);
  return *this;
}

PeerProcess::~PeerProcess() {
  if (out_ != nullptr) std::fclose(out_);
  if (in_ != nullptr) std::fclose(in_);
  if (pid_ > 0) waitpid(pid_, nullptr, 0);
}

Result<boost::json::object> PeerProcess::read() {
  char* line = nullptr;
  size_t capacity = 0;
  const ssize_t length = getline(&line, &capacity, in_);
  const std::string text = length > 0 ? std::string(line, static_cast<size_t>(length)) : std::string();
  std::free(line);
  boost::system::error_code error;
  boost::json::value value = boost::json::parse(text, error);
  if (error || !value.is_object()) {
    return Status(StatusCode::unavailable,
                  format("peer {}: {}", name_, text.empty() ? "it ended" : "not a JSON object: " + text));
  }
  return value.as_object();
}

Result<boost::json::object> PeerProcess::ask(const boost::json::object& request) {
  const std::string line = boost::json::serialize(request) + "\n";
  std::fwrite(line.data(), 1, line.size(), out_);
  std::fflush(out_);
  return read();
}

Status PeerProcess::wait_until_asleep() const {
  using clock = std::chrono::steady_clock;
  const auto deadline = clock::now() + std::chrono::seconds(2);
  while (!asleep(pid_)) {
    if (clock::now() >= deadline) {
      return Status(StatusCode::unavailable,
                    format("peer {}: a thread still runs 2 s after its answer, so no turn beside it is fair; "
                           "is OMP_WAIT_POLICY=active or GOMP_SPINCOUNT set?",
                           name_));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(500));
  }
  return {};
}

}  // namespace tessera::cli
