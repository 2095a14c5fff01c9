"""Compiled code for CPUs: LLVM IR made of gates, run on threads."""
