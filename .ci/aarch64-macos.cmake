# SPDX-License-Identifier: Apache-2.0
# A CMake toolchain for macOS on any machine: zig brings clang, libc++ and the symbols of Apple's system library.
# TOOLS is a Python that has zig. What is built runs on a Mac only.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_CXX_COMPILER "$ENV{TOOLS}" "${CMAKE_CURRENT_LIST_DIR}/zig_macos.py")
set(CMAKE_CXX_ARCHIVE_CREATE "\"$ENV{TOOLS}\" -m ziglang ar qc <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "\"$ENV{TOOLS}\" -m ziglang ranlib <TARGET>")
set(CMAKE_INSTALL_NAME_TOOL true)  # there are no paths to change
