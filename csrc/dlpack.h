// What the binding reads of DLPack's C interface (https://dmlc.github.io/dlpack, DLManagedTensor): how a tensor of any framework
// says where it lies, what its numbers are, and how it is laid out. A capsule is borrowed for a call and never consumed.
#pragma once

#include <cstdint>

namespace rdc::dlpack {

enum DeviceType : int32_t { cpu = 1, cuda = 2, cuda_host = 3, cuda_managed = 13 };
enum TypeCode : uint8_t { whole = 0, unsigned_whole = 1, floating = 2, bfloat = 4 };

struct Device {
  int32_t type;
  int32_t id;
};

struct Type {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  Type type;
  int64_t* shape;
  int64_t* strides;  // in elements; null: dense, row-major
  uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*release)(ManagedTensor*);
};

constexpr const char* capsule_name = "dltensor";

}  // namespace rdc::dlpack
