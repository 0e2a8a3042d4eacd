package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is hauberk.dev/v1alpha1.
var GroupVersion = schema.GroupVersion{Group: "hauberk.dev", Version: "v1alpha1"}

// AddToScheme registers the package's types.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&MeshPolicy{}, &MeshPolicyList{},
		&ClusterMeshPolicy{}, &ClusterMeshPolicyList{},
		&Tier{}, &TierList{},
		&PeerAuthentication{}, &PeerAuthenticationList{},
		&MeshConfig{}, &MeshConfigList{},
		&NetworkSet{}, &NetworkSetList{},
		&ClusterNetworkSet{}, &ClusterNetworkSetList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// Types of conditions of the policy kinds.
const (
	// ConditionAccepted says that the object is understood and in force.
	ConditionAccepted = "Accepted"
	// ConditionResolvedRefs says that all that it refers to exists.
	ConditionResolvedRefs = "ResolvedRefs"
	// ConditionProgrammed says that every node agent and sidecar that needs the
	// object has acknowledged it; its message has the counts.
	ConditionProgrammed = "Programmed"
)
