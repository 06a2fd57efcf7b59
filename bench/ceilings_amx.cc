#define TESSERA_CEILINGS kCeilings_amx
#include "bench/ceilings.inc.h"
