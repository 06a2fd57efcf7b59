// A child process that answers one JSON line to one JSON line: how a benchmark alternates rounds with a
// rival.
#pragma once

#include <boost/json.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "tessera/status.h"

namespace tessera::cli {

class PeerProcess {
 public:
  // Starts arguments[0] (found along PATH). The Status names it when it cannot be started.
  static Result<PeerProcess> start(const std::vector<std::string>& arguments);
  PeerProcess(PeerProcess&& other) noexcept { *this = std::move(other); }
  PeerProcess& operator=(PeerProcess&& other) noexcept;
  // Closes its input, which ends it, and waits.
  ~PeerProcess();

  // Its next line. unavailable when it ended or wrote something else than a JSON object; what it prints on
  // standard error goes to ours.
  Result<boost::json::object> read();
  // Writes one line and reads the answer.
  Result<boost::json::object> ask(const boost::json::object& request);
  // Returns when every thread of it sleeps, by the system's own word: a runtime may keep its workers spinning
  // after an answer (libgomp for 7 to 10 ms), on a core that the caller's next turn needs. unavailable when
  // one still runs after two seconds.
  Status wait_until_asleep() const;

 private:
  PeerProcess() = default;
  std::string name_;
  int pid_ = -1;
  std::FILE *in_ = nullptr, *out_ = nullptr;
};

}  // namespace tessera::cli
