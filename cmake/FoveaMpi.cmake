# SPDX-License-Identifier: Apache-2.0
# MPI's header is compiled in, its library is loaded at run time by a process that mpirun or srun started.

set(FOVEA_MPI auto CACHE STRING "Ranks as processes: on, off; auto: where MPI is installed")
set_property(CACHE FOVEA_MPI PROPERTY STRINGS auto on off)
if(NOT FOVEA_MPI MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "FOVEA_MPI is \"${FOVEA_MPI}\"; expected auto, on or off")
endif()

add_library(fovea_mpi INTERFACE)
set(FOVEA_WITH_MPI OFF)
if(FOVEA_MPI STREQUAL "on")
  find_package(MPI REQUIRED COMPONENTS C)
elseif(FOVEA_MPI STREQUAL "auto")
  find_package(MPI QUIET COMPONENTS C)
endif()
if(MPI_C_FOUND)
  set(FOVEA_WITH_MPI ON)
  get_filename_component(library ${MPI_mpi_LIBRARY} REALPATH)
  get_filename_component(soname ${library} NAME)
  string(REGEX REPLACE "(\\.so\\.[0-9]+).*" "\\1" soname ${soname})
  target_include_directories(fovea_mpi SYSTEM INTERFACE ${MPI_C_INCLUDE_DIRS})
  target_compile_definitions(fovea_mpi INTERFACE FOVEA_MPI=1 FOVEA_MPI_SONAME="${soname}" FOVEA_MPI_LIBRARY="${library}")
endif()

# What starts the ranks of a test, up to their number; empty where there is no mpirun.
set(FOVEA_MPIEXEC "")
if(FOVEA_WITH_MPI AND MPIEXEC_EXECUTABLE)
  set(FOVEA_MPIEXEC ${MPIEXEC_EXECUTABLE})
  execute_process(COMMAND ${MPIEXEC_EXECUTABLE} --version OUTPUT_VARIABLE version ERROR_QUIET)
  if(version MATCHES "Open MPI|OpenRTE")  # more ranks than cores, and containers
    list(APPEND FOVEA_MPIEXEC --oversubscribe --allow-run-as-root)
  endif()
  list(APPEND FOVEA_MPIEXEC ${MPIEXEC_NUMPROC_FLAG})
endif()

# Runs the tests of distributed_tests that need processes: on 2, 3, 4 and 8, and with one that fails.
function(fovea_mpi_tests)
  if(NOT FOVEA_MPIEXEC)
    return()
  endif()
  foreach(ranks 2 3 4 8)
    add_test(NAME distributed.mpi_${ranks}
             COMMAND ${FOVEA_MPIEXEC} ${ranks} $<TARGET_FILE:distributed_tests> --gtest_filter=*/Mpi.*)
    set_tests_properties(distributed.mpi_${ranks} PROPERTIES LABELS distributed TIMEOUT 300 PROCESSORS ${ranks}
                         ENVIRONMENT "OMP_NUM_THREADS=1;FOVEA_COMM_TIMEOUT=60")
  endforeach()
  # How the last of three ranks ends, and what is said of it.
  set(hang "rank 0: all_reduce 1 \\(f32, 1024 elements\\) waited 1 s for rank 2")
  set(throw "rank 2: no such file")
  set(kill "rank 2 with PID.*signal 9")
  foreach(way hang throw kill)
    add_test(NAME distributed.mpi_${way}
             COMMAND ${FOVEA_MPIEXEC} 3 $<TARGET_FILE:distributed_tests> --gtest_filter=*/MpiFailure.*)
    set_tests_properties(distributed.mpi_${way} PROPERTIES LABELS distributed TIMEOUT 60 PROCESSORS 2
                         PASS_REGULAR_EXPRESSION "${${way}}"
                         ENVIRONMENT "OMP_NUM_THREADS=1;FOVEA_TEST_FAILURE=${way}")
  endforeach()
endfunction()
