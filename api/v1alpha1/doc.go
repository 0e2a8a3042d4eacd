// Package v1alpha1 holds the types of Hauberk's custom resources, group
// hauberk.dev, version v1alpha1. It owns their shape and their schema's
// validation; it decides nothing. CustomResourceDefinitions and deepcopy code
// are generated from it by `make generate`.
//
// +kubebuilder:object:generate=true
// +groupName=hauberk.dev
package v1alpha1
