# Compiler flags shared by every target. Faster tools are used where they are present.
find_program(TESSERA_CCACHE ccache)
if(TESSERA_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${TESSERA_CCACHE})
endif()
find_program(TESSERA_MOLD mold)
if(TESSERA_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

# Law 1 (row invariance) needs the written order of operations: no contraction, fma is written out.
add_compile_options(-ffp-contract=off -fno-math-errno -fstack-protector-strong -Wall -Wextra
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>  # g++ 12 at -O3 sees overlaps in std::string (GCC bug 105329)
  -Wno-missing-field-initializers)  # designated initialisers leave defaults out on purpose
if(TESSERA_WERROR)
  add_compile_options(-Werror)
endif()
if(TESSERA_SANITIZE)
  add_compile_options(-fsanitize=${TESSERA_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${TESSERA_SANITIZE})
  if(TESSERA_SANITIZE MATCHES "thread")
    # Asio has fences, which ThreadSanitizer does not model; it sees the atomics beside them.
    add_compile_options(-Wno-tsan)
  endif()
endif()
