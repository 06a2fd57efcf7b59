# tessera_fuzzer(NAME FILE DEPS layer...)
#   FILE defines LLVMFuzzerTestOneInput. Always: a ctest entry fuzz.NAME that replays tests/fuzz/corpus/NAME and
#   tests/regress/NAME through it, with any compiler. With TESSERA_FUZZERS (preset fuzz) also the libFuzzer binary
#   fuzz_NAME in the build folder:
#     cmake --preset fuzz && cmake --build --preset fuzz
#     build/fuzz/fuzz_NAME -dict=tests/fuzz/NAME.dict NEW_CORPUS tests/fuzz/corpus/NAME
if(TESSERA_FUZZERS)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "TESSERA_FUZZERS needs clang; use the preset fuzz (scripts/install-deps --fuzz installs it)")
  endif()
  # Every library is instrumented, so that coverage guides the fuzzer through all of the reader.
  add_compile_options(-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
  add_custom_target(fuzzers)
endif()

function(tessera_fuzzer name file)
  cmake_parse_arguments(F "" "" "DEPS" ${ARGN})
  add_executable(replay_${name} ${file} ${CMAKE_SOURCE_DIR}/tests/fuzz/replay_main.cc)
  set(targets replay_${name})
  if(TESSERA_FUZZERS)
    add_executable(fuzz_${name} ${file})
    target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
    set_target_properties(fuzz_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
    add_dependencies(fuzzers fuzz_${name})
    list(APPEND targets fuzz_${name})
  endif()
  foreach(target ${targets})
    target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR})
    foreach(dep ${F_DEPS})
      target_link_libraries(${target} PRIVATE tessera::${dep})
    endforeach()
  endforeach()
  if(NOT TARGET unit_tests)
    add_custom_target(unit_tests)
  endif()
  add_dependencies(unit_tests replay_${name})
  add_test(NAME fuzz.${name} COMMAND replay_${name} ${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${name}
           ${CMAKE_SOURCE_DIR}/tests/regress/${name})
  set_tests_properties(fuzz.${name} PROPERTIES LABELS "fuzz;unit" TIMEOUT 120)
endfunction()
