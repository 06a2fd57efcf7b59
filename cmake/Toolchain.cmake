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
# For C++ alone: Cuda.cmake has nvcc's.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off> $<$<COMPILE_LANGUAGE:CXX>:-fno-math-errno>
  $<$<COMPILE_LANGUAGE:CXX>:-fstack-protector-strong> $<$<COMPILE_LANGUAGE:CXX>:-Wall> $<$<COMPILE_LANGUAGE:CXX>:-Wextra>
  # g++ 12 at -O3 sees overlaps in std::string (GCC bug 105329)
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>
  # designated initialisers leave defaults out on purpose
  $<$<COMPILE_LANGUAGE:CXX>:-Wno-missing-field-initializers>)
if(TESSERA_WERROR)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(TESSERA_SANITIZE)
  add_compile_options(-fsanitize=${TESSERA_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${TESSERA_SANITIZE})
  if(TESSERA_SANITIZE MATCHES "thread")
    # Asio has fences, which ThreadSanitizer does not model; it sees the atomics beside them.
    add_compile_options(-Wno-tsan)
  endif()
endif()
