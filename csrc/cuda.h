// What a CUDA launcher needs: the stream it is given, a guard for the device, and a check of the launch.
#pragma once

#if defined(FL_CUDA)
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace fl {

// The queue of work that a kernel joins. No default: forgetting it would race with torch's own kernels.
struct Stream {
  cudaStream_t handle;
};

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
  }
}

// Makes `device` current for a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(before_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
};

inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

}  // namespace fl
#endif
