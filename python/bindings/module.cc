// tessera._core: the attention library for tessera's Python code. Not a public interface.
#include "bindings/arrays.h"

NB_MODULE(_core, module) {
  using namespace tessera::python;
  module.attr("__version__") = TESSERA_VERSION;
  module.def("num_threads", &num_threads);
  module.def("set_num_threads", &set_num_threads, nanobind::arg("threads"));
  module.def("after_fork_in_child", &after_fork_in_child);
  module.def("workspace_bytes", &workspace_bytes);
  bind_attention(module);
  bind_cache(module);
  bind_cache_tree(module);
  bind_rope_and_merge(module);
  bind_tree(module);
}
