#define TESSERA_PROBE kProbeAvx512
#include "tests/simd/vec_probe.inc.h"
