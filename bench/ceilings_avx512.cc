#define TESSERA_CEILINGS kCeilings_avx512
#include "bench/ceilings.inc.h"
