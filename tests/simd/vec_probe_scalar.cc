#define TESSERA_PROBE kProbeScalar
#include "tests/simd/vec_probe.inc.h"
