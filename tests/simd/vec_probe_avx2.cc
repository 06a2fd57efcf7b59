#define TESSERA_PROBE kProbeAvx2
#include "tests/simd/vec_probe.inc.h"
