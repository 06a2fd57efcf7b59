#define TESSERA_CEILINGS kCeilings_avx2
#include "bench/ceilings.inc.h"
