package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Tier is a step of policy evaluation. The tier "default", order 1000000,
// always exists.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=tiers,scope=Cluster,categories=hauberk
// +kubebuilder:printcolumn:name="Order",type=integer,JSONPath=`.spec.order`
// +kubebuilder:printcolumn:name="Default",type=string,JSONPath=`.spec.defaultAction`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="!(self.metadata.name in ['kube-admin','kube-baseline','default'])",message="kube-admin, default and kube-baseline are built in: choose another name"
type Tier struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   TierSpec     `json:"spec"`
	Status ObjectStatus `json:"status,omitempty"`
}

// TierSpec is the body of a Tier.
type TierSpec struct {
	// order of the tier, lowest first.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100000000
	Order int32 `json:"order"`
	// defaultAction when policies of the tier select an endpoint and none of
	// their rules decided.
	// +kubebuilder:validation:Enum=Deny;Pass
	// +kubebuilder:default=Deny
	// +optional
	DefaultAction RuleAction `json:"defaultAction,omitempty"`
}

// TierList is a list of Tiers.
//
// +kubebuilder:object:root=true
type TierList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Tier `json:"items"`
}

// PeerAuthentication says whether pods accept plain connections. The most
// specific one wins: for a port, for selected pods, for the namespace, for the
// mesh (in hauberk-system without a selector). None means PERMISSIVE.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=peerauthentications,shortName=pa,categories=hauberk
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mtls.mode`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="!has(self.spec.portLevelMtls) || has(self.spec.podSelector)",message="portLevelMtls needs podSelector: ports belong to pods"
type PeerAuthentication struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   PeerAuthenticationSpec `json:"spec"`
	Status PolicyStatus           `json:"status,omitempty"`
}

// PeerAuthenticationSpec is the body of a PeerAuthentication.
type PeerAuthenticationSpec struct {
	// podSelector selects pods of the namespace; absent means all.
	// +optional
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`
	// mtls of the selected pods.
	MTLS MTLS `json:"mtls"`
	// portLevelMtls by port number of the pod.
	// +kubebuilder:validation:MaxProperties=100
	// +optional
	PortLevelMTLS map[string]MTLS `json:"portLevelMtls,omitempty"`
}

// MTLS is a mode of accepting connections.
type MTLS struct {
	// mode STRICT accepts mTLS only; PERMISSIVE accepts plain connections too.
	// +kubebuilder:validation:Enum=STRICT;PERMISSIVE
	Mode string `json:"mode"`
}

// PeerAuthenticationList is a list of PeerAuthentications.
//
// +kubebuilder:object:root=true
type PeerAuthenticationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PeerAuthentication `json:"items"`
}

// MeshConfig is the mesh's settings. There is one, named "default".
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=meshconfigs,scope=Cluster,categories=hauberk
// +kubebuilder:printcolumn:name="Default",type=string,JSONPath=`.spec.defaultAction`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="there is one MeshConfig and its name is default"
type MeshConfig struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec MeshConfigSpec `json:"spec"`
}

// MeshConfigSpec is the body of a MeshConfig.
type MeshConfigSpec struct {
	// defaultAction when no policy decided.
	// +kubebuilder:validation:Enum=Allow;Deny
	// +kubebuilder:default=Allow
	// +optional
	DefaultAction RuleAction `json:"defaultAction,omitempty"`
	// bootstrapNamespaces are namespaces whose pods start without waiting for the
	// control plane, besides hauberk-system: those that it needs itself.
	// +kubebuilder:default={"kube-system"}
	// +kubebuilder:validation:MaxItems=20
	// +optional
	BootstrapNamespaces []string `json:"bootstrapNamespaces,omitempty"`
	// encryption of pod traffic between nodes.
	// +optional
	Encryption Encryption `json:"encryption,omitempty"`
	// telemetry of the sidecars.
	// +optional
	Telemetry Telemetry `json:"telemetry,omitempty"`
	// denyResponseHeader names the policy in a response header of a 403.
	// +optional
	DenyResponseHeader bool `json:"denyResponseHeader,omitempty"`
}

// Encryption is of pod traffic between nodes.
type Encryption struct {
	// mode Strict lets no pod traffic leave a node outside of the tunnel;
	// Disabled makes no tunnel.
	// +kubebuilder:validation:Enum=Strict;Disabled
	// +kubebuilder:default=Strict
	// +optional
	Mode string `json:"mode,omitempty"`
}

// Telemetry is where and how much the sidecars tell.
type Telemetry struct {
	// otlpEndpoint is an OTLP/gRPC collector, host:port; absent means none.
	// +kubebuilder:validation:MaxLength=300
	// +optional
	OTLPEndpoint string `json:"otlpEndpoint,omitempty"`
	// samplingPerMille is how many of 1000 new traces are sampled; a trace that
	// came sampled stays sampled.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	// +kubebuilder:default=10
	// +optional
	SamplingPerMille *int32 `json:"samplingPerMille,omitempty"`
	// accessLog writes one JSON line for each request and connection.
	// +kubebuilder:default=true
	// +optional
	AccessLog *bool `json:"accessLog,omitempty"`
}

// MeshConfigList is a list of MeshConfigs.
//
// +kubebuilder:object:root=true
type MeshConfigList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []MeshConfig `json:"items"`
}
