#define TESSERA_CEILINGS kCeilings_avx512bf16
#include "bench/ceilings.inc.h"
