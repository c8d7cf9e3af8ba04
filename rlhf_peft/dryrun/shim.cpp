// Tells torch that there are eight CUDA devices, so that fake CUDA tensors may have gradients on a machine without one.
// The autograd engine asks these hooks whether a device is there, and the guard to switch between devices.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/FakeGuardImpl.h>

namespace at {
struct DryRunHooks final : CUDAHooksInterface {
  explicit DryRunHooks(CUDAHooksArgs) {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 8; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  int getNumGPUs() const override { return 8; }
  void init() const override {}
};

// A CUDA build of torch registers hooks of its own with the default priority.
C10_REGISTER_TYPED_CLASS_WITH_PRIORITY(CUDAHooksRegistry, "CUDAHooks", c10::REGISTRY_PREFERRED, DryRunHooks)
} // namespace at

// To be called when torch is imported: the guard that was registered last is used.
extern "C" void rlhf_peft_install_guard() {
  static const c10::impl::DeviceGuardImplRegistrar registrar(
      c10::DeviceType::CUDA, new c10::impl::FakeGuardImpl<c10::DeviceType::CUDA>());
}
