"""What kvm_amd alone has: nested SVM."""
