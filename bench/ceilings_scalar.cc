#define TESSERA_CEILINGS kCeilings_scalar
#include "bench/ceilings.inc.h"
