# Linked libraries; all permissive. scripts/install-deps installs them. See docs/decisions/dependencies.md.
find_package(Threads REQUIRED)
find_package(fmt 9.1 REQUIRED)
if(TESSERA_ENGINE)
  find_package(OpenSSL 3.0 REQUIRED COMPONENTS Crypto)
  find_package(Boost 1.81 REQUIRED)  # headers only: Beast, Asio, JSON
  find_package(CLI11 2.1 REQUIRED)   # headers only: the command line
endif()
