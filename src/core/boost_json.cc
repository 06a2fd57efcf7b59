// Boost.JSON's definitions, compiled here once: Debian's compiled form would bring a second Boost with it.
#include <boost/json/src.hpp>
