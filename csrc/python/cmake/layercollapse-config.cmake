# find_package(layercollapse) gives the targets layercollapse::cpu and, where the CUDA library was built,
# layercollapse::cuda. Its folder: python -m layercollapse_core --cmakedir
file(GLOB _layercollapse_cpu "${CMAKE_CURRENT_LIST_DIR}/../_cpu*.so")
file(GLOB _layercollapse_cuda "${CMAKE_CURRENT_LIST_DIR}/../_cuda*.so")
foreach(_layercollapse_part cpu cuda)
  if(_layercollapse_${_layercollapse_part} AND NOT TARGET layercollapse::${_layercollapse_part})
    add_library(layercollapse::${_layercollapse_part} SHARED IMPORTED)
    set_target_properties(layercollapse::${_layercollapse_part} PROPERTIES
      IMPORTED_LOCATION "${_layercollapse_${_layercollapse_part}}"
      INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}/../include")
  endif()
endforeach()
if(NOT _layercollapse_cpu)
  set(layercollapse_FOUND FALSE)
  set(layercollapse_NOT_FOUND_MESSAGE "the C++ core of layercollapse is not built: install it with GCC or Clang")
endif()
