#define TESSERA_PROBE kProbeAvx512bf16
#include "tests/simd/vec_probe.inc.h"
