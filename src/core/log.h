// Where the library's words go. The library itself never prints: whoever makes an engine passes a LogSink.
#pragma once

#include <functional>
#include <string_view>

namespace tessera {
enum class LogLevel { debug, info, warning, error };
// Called from any thread; must not throw. An empty function drops the line.
using LogSink = std::function<void(LogLevel, std::string_view)>;
}  // namespace tessera
