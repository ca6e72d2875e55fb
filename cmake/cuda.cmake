# placeholder until the CUDA room writes it
function(dance_add_cuda module)
  target_sources(${module} PRIVATE ${PROJECT_SOURCE_DIR}/cuda/absent.cpp)
  target_include_directories(${module} PRIVATE ${PROJECT_SOURCE_DIR}/cuda)
endfunction()
