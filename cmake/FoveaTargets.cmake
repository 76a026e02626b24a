# SPDX-License-Identifier: Apache-2.0
# A folder is a library: every .cpp below it, but *_test.cpp, which become one test program per folder.
# Files named *.simd.cpp are compiled twice, for AVX2 and for AVX-512 (see core/cpu/isa.h).

add_library(fovea_flags INTERFACE)
target_compile_features(fovea_flags INTERFACE cxx_std_20)
target_include_directories(fovea_flags INTERFACE ${CMAKE_SOURCE_DIR})
# -Wrestrict of GCC 12 fires on std::string concatenation (GCC bug 105329).
target_compile_options(fovea_flags INTERFACE -Wall -Wextra -Wconversion -Wno-sign-conversion -Wno-restrict -fno-math-errno -ffunction-sections
                       -fdata-sections $<$<BOOL:${FOVEA_WERROR}>:-Werror>)
target_compile_definitions(fovea_flags INTERFACE FOVEA_VERSION="${PROJECT_VERSION}")
target_link_options(fovea_flags INTERFACE -Wl,--gc-sections)

# What every processor must have, and what the two versions of a *.simd.cpp are compiled for.
add_library(fovea_baseline INTERFACE)
target_link_libraries(fovea_baseline INTERFACE fovea_flags fovea_gpu)
target_compile_options(fovea_baseline INTERFACE -march=x86-64-v3 -ffp-contract=off)
set(FOVEA_AVX2_FLAGS -march=x86-64-v3 -ffp-contract=fast)
set(FOVEA_AVX512_FLAGS -march=x86-64-v4 -mavx512bf16 -mavx512vnni -mavx512vpopcntdq -mprefer-vector-width=512 -ffp-contract=fast)

# fovea_library(<folder> [DEPENDS folders...] [LINK targets...])
function(fovea_library folder)
  cmake_parse_arguments(ARG "" "" "DEPENDS;LINK" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${folder}/*.cpp)
  set(tests ${sources})
  list(FILTER tests INCLUDE REGEX "_test\\.cpp$")
  list(FILTER sources EXCLUDE REGEX "(_test|/main)\\.cpp$")
  # A device that this build lacks.
  if(NOT FOVEA_WITH_INTERPRETER)
    list(FILTER sources EXCLUDE REGEX "/core/interpreter/")
    list(FILTER tests EXCLUDE REGEX "/core/interpreter/")
  endif()
  if(NOT FOVEA_WITH_NVCC)
    list(FILTER sources EXCLUDE REGEX "/card/")
  endif()
  set(simd ${sources})
  list(FILTER simd INCLUDE REGEX "\\.simd\\.cpp$")
  list(FILTER sources EXCLUDE REGEX "\\.simd\\.cpp$")
  list(TRANSFORM ARG_DEPENDS PREPEND fovea_)
  if(sources)
    add_library(fovea_${folder} STATIC ${sources})
    target_link_libraries(fovea_${folder} PUBLIC fovea_baseline ${ARG_DEPENDS} ${ARG_LINK})
    if(simd)
      # GCC 12 takes the undefined operands inside its own intrinsics for uninitialised variables.
      set_source_files_properties(${simd} PROPERTIES COMPILE_OPTIONS "-Wno-maybe-uninitialized;-Wno-uninitialized")
      foreach(isa avx2 avx512)
        add_library(fovea_${folder}_${isa} OBJECT ${simd})
        target_link_libraries(fovea_${folder}_${isa} PRIVATE fovea_flags)
        string(TOUPPER ${isa} ISA)
        target_compile_options(fovea_${folder}_${isa} PRIVATE ${FOVEA_${ISA}_FLAGS})
        target_sources(fovea_${folder} PRIVATE $<TARGET_OBJECTS:fovea_${folder}_${isa}>)
      endforeach()
    endif()
    fovea_kernels(${folder} fovea_${folder})
  else()
    add_library(fovea_${folder} INTERFACE)
    target_link_libraries(fovea_${folder} INTERFACE fovea_baseline ${ARG_DEPENDS} ${ARG_LINK})
  endif()
  if(FOVEA_TESTS AND tests)
    add_executable(${folder}_tests ${tests})
    fovea_kernels(${folder} ${folder}_tests TESTS)
    target_link_libraries(${folder}_tests PRIVATE fovea_${folder} GTest::gtest GTest::gtest_main)
    include(GoogleTest)
    gtest_discover_tests(${folder}_tests WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} PROPERTIES LABELS ${folder} TIMEOUT 300 DISCOVERY_TIMEOUT 60)
  endif()
endfunction()

# fovea_program(<name> <main.cpp> DEPENDS folders...)
function(fovea_program name main)
  cmake_parse_arguments(ARG "" "" "DEPENDS" ${ARGN})
  list(TRANSFORM ARG_DEPENDS PREPEND fovea_)
  add_executable(${name} ${main})
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS})
  
endfunction()

# A folder <folder>/<name>/ holding <name>.h is a system: the call writes the list of their register_<name>() functions.
function(fovea_systems folder)
  file(GLOB headers CONFIGURE_DEPENDS RELATIVE ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/${folder}/*/*.h)
  set(includes "")
  set(calls "")
  foreach(header ${headers})
    if(header MATCHES "^${folder}/([a-z0-9_]+)/([a-z0-9_]+)\\.h$" AND CMAKE_MATCH_1 STREQUAL CMAKE_MATCH_2)
      file(STRINGS ${CMAKE_SOURCE_DIR}/${header} registers REGEX "register_${CMAKE_MATCH_1}\\(\\)")
      if(registers)
        string(APPEND includes "#include \"${header}\"\n")
        string(APPEND calls "  systems.push_back(register_${CMAKE_MATCH_1}());\n")
      endif()
    endif()
  endforeach()
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/${folder}_systems.cpp CONTENT
"${includes}
namespace fovea::${folder} {

std::vector<System> all_systems();
std::vector<System> all_systems() {
  std::vector<System> systems;
${calls}  return systems;
}

}  // namespace fovea::${folder}
")
  target_sources(fovea_${folder} PRIVATE ${CMAKE_BINARY_DIR}/generated/${folder}_systems.cpp)
endfunction()
