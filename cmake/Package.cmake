# cmake --install: the attention library for find_package(Tessera), which gives Tessera::attention, and Tessera::cuda for
# what tessera/cuda.h declares. Public headers and static libraries; all that a user's build must have besides is threads,
# and with Tessera::cuda of a build with CUDA kernels the CUDA toolkit.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/Tessera)

foreach(library base simd attention cuda)
  set_target_properties(tessera_${library} PROPERTIES EXPORT_NAME ${library})
endforeach()
install(TARGETS tessera_base tessera_simd tessera_attention tessera_cuda EXPORT TesseraTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT attention)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/tessera DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  COMPONENT attention FILES_MATCHING PATTERN *.h)
install(EXPORT TesseraTargets NAMESPACE Tessera:: DESTINATION ${package_dir} COMPONENT attention)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/TesseraConfig.cmake.in
  ${PROJECT_BINARY_DIR}/TesseraConfig.cmake INSTALL_DESTINATION ${package_dir})
# 0.x makes no promise between minor versions.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/TesseraConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/TesseraConfig.cmake ${PROJECT_BINARY_DIR}/TesseraConfigVersion.cmake
  DESTINATION ${package_dir} COMPONENT attention)
