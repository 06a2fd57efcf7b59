# CUDA: found or not, the flags of its kernels, and their tests. Without it everything else builds and runs.
set(TESSERA_HAS_CUDA OFF)
if(NOT TESSERA_CUDA STREQUAL "OFF")
  find_program(TESSERA_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
  if(TESSERA_NVCC)
    set(CMAKE_CUDA_COMPILER ${TESSERA_NVCC})
    set(CMAKE_CUDA_ARCHITECTURES OFF)  # each folder of kernels names its own
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc 12 has it
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    find_package(CUDAToolkit 12.3 REQUIRED)  # the first whose ptxas knows all of sm_90a that is used
    set(TESSERA_HAS_CUDA ON)
  elseif(TESSERA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "TESSERA_CUDA=ON needs nvcc on the PATH, or in CUDACXX, CUDA_HOME or /usr/local/cuda")
  endif()
endif()
message(STATUS "CUDA kernels: ${TESSERA_HAS_CUDA}")

if(TESSERA_HAS_CUDA)
  # ptxas' report is read after each kernel file: spills and serialised wgmma fail the build (see the script).
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_SOURCE_DIR}/cmake/check_ptxas.sh)
  if(TESSERA_CCACHE)
    list(APPEND CMAKE_CUDA_COMPILER_LAUNCHER ${TESSERA_CCACHE})
  endif()
  # -fmad=false: as for C++, a fused multiply-add is written where it is wanted.
  # 20012 and 20013: defaulted and constexpr functions of the standard library in device code are meant.
  add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-fmad=false;--expt-relaxed-constexpr;-lineinfo;-Xptxas=-v;-diag-suppress=20012,20013;-Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers,-Wno-unused-parameter>")
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)  # a sixth of the bytes; unpacked when a kernel is first used
    add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:--compress-mode=size>")
  endif()
  if(TESSERA_WERROR)
    add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>")
  endif()
endif()

# For compute-sanitizer's racecheck: see src/attention/cuda/common/arrive.cuh.
option(TESSERA_RACECHECK "CUDA kernels whose barriers racecheck can follow, a little slower" OFF)
if(TESSERA_RACECHECK)
  add_compile_definitions("$<$<COMPILE_LANGUAGE:CUDA>:TESSERA_RACECHECK>")
endif()

# Real code for Ampere and Ada (sm_80) and Hopper (sm_90), and PTX for what comes later; folders named sm90 for Hopper's
# own instructions alone.
set(TESSERA_GENCODE_sm90 -gencode=arch=compute_90a,code=sm_90a)
set(TESSERA_GENCODE -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=[sm_90,compute_90])
function(tessera_cuda_flags)
  foreach(source ${ARGN})
    if(source MATCHES "sm90.*\\.cu$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${TESSERA_GENCODE_sm90}")
    elseif(source MATCHES "\\.cu$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${TESSERA_GENCODE}")
    endif()
  endforeach()
endfunction()

# tessera_cuda_test(FILE...): one executable and one ctest entry for a *_test.cu. Without a GPU it is skipped and says so.
function(tessera_cuda_test file)
  get_filename_component(stem ${file} NAME_WE)
  set(target cuda_${stem})
  add_executable(${target} ${file} ${ARGN} ${CMAKE_SOURCE_DIR}/tests/cuda/support/main.cc)
  tessera_cuda_flags(${file} ${ARGN})
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR})
  target_link_libraries(${target} PRIVATE tessera::cuda CUDA::cudart_static GTest::gtest)
  add_test(NAME cuda.${stem} COMMAND ${target})
  set_tests_properties(cuda.${stem} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 600 LABELS cuda)
  if(NOT TARGET cuda_tests)
    add_custom_target(cuda_tests)
  endif()
  add_dependencies(cuda_tests ${target})
endfunction()
