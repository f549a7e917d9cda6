"""What kvm_intel alone has: nested VMX, its instructions and the VMCS that L1 keeps."""
