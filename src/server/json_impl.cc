// Alone in its object file: when another layer compiles the same bodies the linker takes only one of them.
#include <boost/json/src.hpp>
