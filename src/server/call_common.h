// What both generating routes read in the same way.
#pragma once

#include "server/call.h"
#include "server/fields.h"

namespace tessera::server {

// n, best_of, stream, stream_options, seed, stop, the sampler's fields and the extras; not max_tokens and
// logprobs, whose forms differ. Ends with the range check of everything that is in call->sampling.
Fault parse_shared(Fields& fields, const CallRules& rules, Call* call);
// The range check, under the name that the client used.
Fault check_sampling(const Fields& fields, const CallRules& rules, const Call& call);

}  // namespace tessera::server
