// The kernel's own source, called as cuLaunchKernel would; test_kernel_host.py loads it.
#include "emulator.h"

#define LRNN_HOST
#include "recurrence.cu"

extern "C" const char* launch(const host::Launch* how, void* const* arguments, unsigned count,
                              host::Traffic* traffic) {
  if (count != host::parameter_count(recurrence)) return "wrong number of arguments";
  const char* error = host::run(*how, host::thread_body<recurrence>, arguments);
  *traffic = host::traffic;
  return error;
}
