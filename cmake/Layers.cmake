# tessera_library(NAME SOURCES file... DEPS layer... LIBS third-party...)
#   The static library tessera::NAME (an interface library without sources), whose users see src/ and include/.
function(tessera_library name)
  cmake_parse_arguments(L "" "" "SOURCES;DEPS;LIBS" ${ARGN})
  if(L_SOURCES)
    add_library(tessera_${name} STATIC ${L_SOURCES})
    set(scope PUBLIC)
  else()
    add_library(tessera_${name} INTERFACE)
    set(scope INTERFACE)
  endif()
  add_library(tessera::${name} ALIAS tessera_${name})
  target_include_directories(tessera_${name} ${scope} $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:include>)
  foreach(dep ${L_DEPS})
    target_link_libraries(tessera_${name} ${scope} tessera_${dep})
  endforeach()
  target_link_libraries(tessera_${name} ${scope} ${L_LIBS} Threads::Threads)
  tessera_isa_flags("${L_SOURCES}")
endfunction()

# tessera_layer(NAME DEPS layer... LIBS third-party...)
#   The library of src/NAME, of every .cc under it; what it may include is DEPS (tests/architecture checks the
#   same arrows on the text of the includes).
#   Files under cpu/ named *_ISA.cc (scalar, avx2, avx512, avx512bf16, amx) get that ISA's flags.
function(tessera_layer name)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
  list(FILTER sources EXCLUDE REGEX "/cuda/")  # those are tessera::cuda
  tessera_library(${name} SOURCES ${sources} ${ARGN})
endfunction()

# -fno-tree-vectorize: vector code is written out, and the compiler must not pick its own order of additions
# or an instruction that the ISA's name does not promise.
# Under the sanitizers -O1: at -O3 one kernel file takes minutes there.
if(TESSERA_SANITIZE)
  set(TESSERA_KERNEL_LEVEL -O1)
else()
  set(TESSERA_KERNEL_LEVEL -O3)
endif()
set(TESSERA_FLAGS_scalar ${TESSERA_KERNEL_LEVEL} -fno-tree-vectorize)
set(TESSERA_FLAGS_avx2 ${TESSERA_KERNEL_LEVEL} -fno-tree-vectorize -mavx2 -mfma -mf16c -mbmi2)
# GCC 12 takes the undefined pass-through operand inside its own AVX-512 intrinsics for a use (fixed in GCC 13).
set(TESSERA_FLAGS_avx512 ${TESSERA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni
    -mprefer-vector-width=512 -Wno-uninitialized $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
set(TESSERA_FLAGS_avx512bf16 ${TESSERA_FLAGS_avx512} -mavx512bf16)
if(TESSERA_EMULATE_AMX)
  set(TESSERA_FLAGS_amx ${TESSERA_FLAGS_avx512bf16} -DTESSERA_TILES -DTESSERA_EMULATED_TILES)
else()
  set(TESSERA_FLAGS_amx ${TESSERA_FLAGS_avx512bf16} -DTESSERA_TILES -mamx-tile -mamx-bf16)
endif()
function(tessera_isa_flags sources)
  foreach(isa scalar avx2 avx512 avx512bf16 amx)
    foreach(source ${sources})
      if(source MATCHES "_${isa}\\.cc$")
        set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${TESSERA_FLAGS_${isa}}")
      endif()
    endforeach()
  endforeach()
endfunction()

# tessera_test(FILE DEPS layer... LIBS ... [ISA] [LABELS ...] [TIMEOUT s])
#   One executable and one ctest entry for a *_test.cc; with ISA, one ctest entry for each ISA, run with
#   TESSERA_ISA set. A machine without that ISA skips the entry and prints why.
function(tessera_test file)
  cmake_parse_arguments(T "ISA" "TIMEOUT" "DEPS;LIBS;LABELS" ${ARGN})
  get_filename_component(stem ${file} NAME_WE)
  get_filename_component(folder ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  set(target ${folder}_${stem})
  add_executable(${target} ${file} ${CMAKE_SOURCE_DIR}/tests/support/main.cc)
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_definitions(${target} PRIVATE TESSERA_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  foreach(dep ${T_DEPS})
    target_link_libraries(${target} PRIVATE tessera::${dep})
  endforeach()
  target_link_libraries(${target} PRIVATE tessera::simd ${T_LIBS} GTest::gtest GTest::gmock)
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 600)
  endif()
  # scripts/test builds just these under the sanitizers.
  foreach(group unit tsan)
    if(group IN_LIST T_LABELS)
      if(NOT TARGET ${group}_tests)
        add_custom_target(${group}_tests)
      endif()
      add_dependencies(${group}_tests ${target})
    endif()
  endforeach()
  if(T_ISA)
    foreach(isa scalar avx2 avx512 avx512bf16 amx)
      add_test(NAME ${folder}.${stem}.${isa} COMMAND ${target})
      set_tests_properties(${folder}.${stem}.${isa} PROPERTIES ENVIRONMENT "TESSERA_ISA=${isa}"
        SKIP_RETURN_CODE 77 TIMEOUT ${T_TIMEOUT} LABELS "${folder};isa;${T_LABELS}")
    endforeach()
  else()
    add_test(NAME ${folder}.${stem} COMMAND ${target})
    set_tests_properties(${folder}.${stem} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT ${T_TIMEOUT}
      LABELS "${folder};${T_LABELS}")
  endif()
endfunction()

# Registers every *_test.cc of the current folder with the same options.
function(tessera_test_folder)
  file(GLOB files CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*_test.cc)
  foreach(file ${files})
    tessera_test(${file} ${ARGN})
  endforeach()
endfunction()
