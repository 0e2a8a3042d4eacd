package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// NetworkSet is a named list of address ranges, for policies of its namespace.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=networksets,shortName=netset,categories=hauberk
// +kubebuilder:printcolumn:name="Networks",type=string,JSONPath=`.spec.networks[*].cidr`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type NetworkSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   NetworkSetSpec `json:"spec"`
	Status ObjectStatus   `json:"status,omitempty"`
}

// NetworkSetList is a list of NetworkSets.
//
// +kubebuilder:object:root=true
type NetworkSetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NetworkSet `json:"items"`
}

// ClusterNetworkSet is a NetworkSet for policies of any namespace.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=clusternetworksets,scope=Cluster,shortName=cnetset,categories=hauberk
// +kubebuilder:printcolumn:name="Networks",type=string,JSONPath=`.spec.networks[*].cidr`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ClusterNetworkSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   NetworkSetSpec `json:"spec"`
	Status ObjectStatus   `json:"status,omitempty"`
}

// ClusterNetworkSetList is a list of ClusterNetworkSets.
//
// +kubebuilder:object:root=true
type ClusterNetworkSetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterNetworkSet `json:"items"`
}

// NetworkSetSpec is the body of a NetworkSet.
type NetworkSetSpec struct {
	// networks are the address ranges; none means that nobody is in the set.
	// +kubebuilder:validation:MaxItems=1000
	// +optional
	Networks []Network `json:"networks,omitempty"`
}

// ObjectStatus says whether an object is understood.
type ObjectStatus struct {
	// conditions: Accepted.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
