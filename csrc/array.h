// A tensor as Python hands it to a kernel, checked: device, type, shape and layout, before an address is used.
#pragma once
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "dlpack.h"

namespace rdc {

// The tensors of one call. Each is asked for by name and shape; what does not fit is an error that names both.
class Arrays {
 public:
  // device: where all of them must be; its number comes from the first tensor asked for
  Arrays(const char* op, dlpack::DeviceType device) : op_(op), device_(device) {}

  static constexpr dlpack::Type float32{dlpack::floating, 32, 1};
  static constexpr dlpack::Type float64{dlpack::floating, 64, 1};
  static constexpr dlpack::Type bfloat16{dlpack::bfloat, 16, 1};

  const dlpack::Tensor& any(const char* name, pybind11::handle capsule, int ndim) {
    void* held = PyCapsule_IsValid(capsule.ptr(), dlpack::capsule_name) ? PyCapsule_GetPointer(capsule.ptr(), dlpack::capsule_name) : nullptr;
    if (!held) fail(name, "expected a DLPack capsule (torch.utils.dlpack.to_dlpack)");
    const dlpack::Tensor& t = static_cast<dlpack::ManagedTensor*>(held)->tensor;
    if (t.ndim != ndim) fail(name, "expected " + std::to_string(ndim) + " dimensions, got " + std::to_string(t.ndim));
    if (t.device.type != device_) fail(name, "expected device type " + std::to_string(device_) + ", got " + std::to_string(t.device.type));
    if (number_ < 0) number_ = t.device.id;
    if (t.device.id != number_) fail(name, "expected device " + std::to_string(number_) + ", got " + std::to_string(t.device.id));
    return t;
  }

  // dense, row-major
  void* dense(const char* name, pybind11::handle capsule, dlpack::Type type, const std::vector<int64_t>& shape) {
    const dlpack::Tensor& t = checked(name, capsule, type, shape);
    int64_t expected = 1;
    for (int i = t.ndim - 1; t.strides && i >= 0; --i) {
      if (t.shape[i] != 1 && t.strides[i] != expected) fail(name, "expected a dense row-major tensor");
      expected *= t.shape[i];
    }
    return address(t);
  }

  // [B, C, H, W] in channels_last: dense as [B, H, W, C]
  void* channels_last(const char* name, pybind11::handle capsule, dlpack::Type type, const std::array<int64_t, 4>& shape) {
    const dlpack::Tensor& t = checked(name, capsule, type, {shape.begin(), shape.end()});
    const std::array<int64_t, 4> strides{shape[1] * shape[2] * shape[3], 1, shape[1] * shape[3], shape[1]};
    const bool plane = shape[1] == 1 || shape[2] * shape[3] == 1;  // where both layouts are one
    for (int i = 0; i < 4; ++i)
      if (shape[i] != 1 && (t.strides ? t.strides[i] != strides[i] : !plane)) fail(name, "expected channels_last");
    return address(t);
  }

  // [count, width], whose rows are ``stride`` apart and do not overlap
  void* rows(const char* name, pybind11::handle capsule, dlpack::Type type, int64_t count, int64_t width, int64_t* stride) {
    const dlpack::Tensor& t = checked(name, capsule, type, {count, width});
    *stride = t.strides && count > 1 ? t.strides[0] : width;
    if (*stride < width || (t.strides && width > 1 && t.strides[1] != 1)) fail(name, "expected rows of numbers that lie side by side");
    return address(t);
  }

  // with strides in elements, which are written to ``stride``
  void* strided(const char* name, pybind11::handle capsule, dlpack::Type type, const std::array<int64_t, 4>& shape, int64_t* stride) {
    const dlpack::Tensor& t = checked(name, capsule, type, {shape.begin(), shape.end()});
    int64_t dense = 1;
    for (int i = 3; i >= 0; --i) {
      stride[i] = t.strides ? t.strides[i] : dense;
      dense *= shape[i];
    }
    return address(t);
  }

  int number() const { return number_; }

  [[noreturn]] void fail(const char* name, const std::string& why) const {
    throw std::invalid_argument(std::string(op_) + ": " + name + ": " + why);
  }

 private:
  const dlpack::Tensor& checked(const char* name, pybind11::handle capsule, dlpack::Type type, const std::vector<int64_t>& shape) {
    const dlpack::Tensor& t = any(name, capsule, static_cast<int>(shape.size()));
    if (t.type.code != type.code || t.type.bits != type.bits || t.type.lanes != 1)
      fail(name, "expected " + text(type) + ", got " + text(t.type));
    for (int i = 0; i < t.ndim; ++i)
      if (t.shape[i] != shape[i]) fail(name, "expected shape " + text(shape) + ", got " + text({t.shape, t.shape + t.ndim}));
    return t;
  }

  static void* address(const dlpack::Tensor& t) { return static_cast<char*>(t.data) + t.byte_offset; }

  static std::string text(dlpack::Type t) {
    const char* kind = t.code == dlpack::bfloat ? "bfloat" : t.code == dlpack::floating ? "float" : t.code == dlpack::whole ? "int" : "type";
    return kind + std::to_string(t.bits);
  }

  static std::string text(const std::vector<int64_t>& shape) {
    std::string all = "[";
    for (int64_t size : shape) all += (all.size() > 1 ? ", " : "") + std::to_string(size);
    return all + "]";
  }

  const char* op_;
  dlpack::DeviceType device_;
  int number_ = -1;
};

}  // namespace rdc
