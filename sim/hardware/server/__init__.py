"""A small real server of many models on one device, under the policies of `policies/`."""
