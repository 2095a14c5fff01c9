// The kernel's own source, called as cuLaunchKernel would; tests/host_kernel.py loads it.
#include "emulator.h"

#define LRNN_HOST
#include "recurrence.cu"

extern "C" const char* launch(const host::Launch* how, const void* parameter, unsigned size,
                              host::Traffic* traffic) {
  if (size != sizeof(Problem)) return "a struct of another size";
  const char* error = host::run(*how, host::thread_body<recurrence>, parameter);
  *traffic = host::traffic;
  return error;
}
