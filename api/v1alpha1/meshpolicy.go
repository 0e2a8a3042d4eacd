package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// MeshPolicy says what traffic the selected pods of its namespace may receive
// and send, from the packet to the HTTP request.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=meshpolicies,shortName=mpol,categories=hauberk
// +kubebuilder:printcolumn:name="Tier",type=string,JSONPath=`.spec.tier`
// +kubebuilder:printcolumn:name="Order",type=integer,JSONPath=`.spec.order`
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mode`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.conditions[?(@.type=="Programmed")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type MeshPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   PolicySpec   `json:"spec"`
	Status PolicyStatus `json:"status,omitempty"`
}

// MeshPolicyList is a list of MeshPolicies.
//
// +kubebuilder:object:root=true
type MeshPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []MeshPolicy `json:"items"`
}

// ClusterMeshPolicy is a MeshPolicy for pods of any namespace.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=clustermeshpolicies,scope=Cluster,shortName=cmpol,categories=hauberk
// +kubebuilder:printcolumn:name="Tier",type=string,JSONPath=`.spec.tier`
// +kubebuilder:printcolumn:name="Order",type=integer,JSONPath=`.spec.order`
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mode`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.conditions[?(@.type=="Programmed")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ClusterMeshPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   ClusterPolicySpec `json:"spec"`
	Status PolicyStatus      `json:"status,omitempty"`
}

// ClusterMeshPolicyList is a list of ClusterMeshPolicies.
//
// +kubebuilder:object:root=true
type ClusterMeshPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterMeshPolicy `json:"items"`
}

// PolicyType is a direction of traffic.
//
// +kubebuilder:validation:Enum=Ingress;Egress
type PolicyType string

// PolicyMode says whether a policy decides.
//
// +kubebuilder:validation:Enum=Enforce;Audit
type PolicyMode string

// RuleAction is what a rule does with what it matches.
//
// +kubebuilder:validation:Enum=Allow;Deny;Pass;Log
type RuleAction string

// PolicySpec is the body of a MeshPolicy.
//
// +kubebuilder:validation:XValidation:rule="!has(self.types) || 'Egress' in self.types || !has(self.egress) || size(self.egress) == 0",message="egress rules have no effect: add Egress to spec.types, or leave spec.types out"
// +kubebuilder:validation:XValidation:rule="!has(self.types) || 'Ingress' in self.types || !has(self.ingress) || size(self.ingress) == 0",message="ingress rules have no effect: add Ingress to spec.types, or leave spec.types out"
type PolicySpec struct {
	// podSelector selects the policy's subjects in its own namespace; an empty
	// selector selects all its pods.
	PodSelector metav1.LabelSelector `json:"podSelector"`
	PolicyRules `json:",inline"`
}

// ClusterPolicySpec is the body of a ClusterMeshPolicy.
//
// +kubebuilder:validation:XValidation:rule="!has(self.types) || 'Egress' in self.types || !has(self.egress) || size(self.egress) == 0",message="egress rules have no effect: add Egress to spec.types, or leave spec.types out"
// +kubebuilder:validation:XValidation:rule="!has(self.types) || 'Ingress' in self.types || !has(self.ingress) || size(self.ingress) == 0",message="ingress rules have no effect: add Ingress to spec.types, or leave spec.types out"
type ClusterPolicySpec struct {
	// namespaceSelector limits the subjects to namespaces with matching labels;
	// absent or empty means all namespaces.
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	// podSelector limits the subjects to pods with matching labels; absent or
	// empty means all pods.
	// +optional
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`
	PolicyRules `json:",inline"`
}

// PolicyRules is what MeshPolicy and ClusterMeshPolicy share.
type PolicyRules struct {
	// tier is the name of the Tier that the policy belongs to.
	// +kubebuilder:default=default
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Tier string `json:"tier,omitempty"`
	// order sorts the policies of a tier, lowest first; absent is last.
	// Kubernetes NetworkPolicies stand at 1000 in the tier "default".
	// +optional
	Order *int32 `json:"order,omitempty"`
	// mode Audit records what the policy would decide, and decides nothing.
	// +kubebuilder:default=Enforce
	// +optional
	Mode PolicyMode `json:"mode,omitempty"`
	// types are the directions that the policy governs: by default Ingress, and
	// Egress when there are egress rules.
	// +kubebuilder:validation:MaxItems=2
	// +listType=set
	// +optional
	Types []PolicyType `json:"types,omitempty"`
	// ingress rules, first match decides.
	// +kubebuilder:validation:MaxItems=1000
	// +optional
	Ingress []IngressRule `json:"ingress,omitempty"`
	// egress rules, first match decides.
	// +kubebuilder:validation:MaxItems=1000
	// +optional
	Egress []EgressRule `json:"egress,omitempty"`
}

// RuleCommon is what ingress and egress rules share.
//
// +kubebuilder:validation:XValidation:rule="(!has(self.http) && !has(self.grpc)) || !has(self.ports) || self.ports.all(p, !has(p.protocol) || p.protocol == 'TCP')",message="http and grpc need TCP: remove the ports of other protocols from this rule"
type RuleCommon struct {
	// name of the rule, shown where it decides; its place in the list by default.
	// +kubebuilder:validation:MaxLength=63
	// +optional
	Name string `json:"name,omitempty"`
	// action of the rule.
	// +kubebuilder:default=Allow
	// +optional
	Action RuleAction `json:"action,omitempty"`
	// ports of the destination; absent means all.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	// +optional
	Ports []RulePort `json:"ports,omitempty"`
	// http limits the rule to HTTP requests that match one entry.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=50
	// +optional
	HTTP []HTTPMatch `json:"http,omitempty"`
	// grpc limits the rule to gRPC requests that match one entry. With http, a
	// request must match an entry of both.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=50
	// +optional
	GRPC []GRPCMatch `json:"grpc,omitempty"`
	// requires are conditions on the connection.
	// +optional
	Requires *Requirements `json:"requires,omitempty"`
}

// IngressRule matches traffic to the subject.
type IngressRule struct {
	RuleCommon `json:",inline"`
	// from is the sources; absent means any, an empty list is refused.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	// +optional
	From []Peer `json:"from,omitempty"`
}

// EgressRule matches traffic from the subject.
//
// +kubebuilder:validation:XValidation:rule="!has(self.ports) || !has(self.to) || !self.to.exists(p, has(p.services))",message="a Service says its ports itself: remove ports from this rule, or name the pods by podSelector"
type EgressRule struct {
	RuleCommon `json:",inline"`
	// to is the destinations; absent means any, an empty list is refused.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	// +optional
	To []Peer `json:"to,omitempty"`
}

// Peer is the other end of the traffic. Its fields are ANDed.
//
// +kubebuilder:validation:MinProperties=1
// +kubebuilder:validation:XValidation:rule="!has(self.services) || (!has(self.podSelector) && !has(self.namespaceSelector) && !has(self.serviceAccounts) && !has(self.serviceAccountSelector) && !has(self.principals) && !has(self.networks) && !has(self.networkSets) && !has(self.nodeSelector) && !has(self.entities))",message="services stands alone: write the other fields as a peer of their own"
type Peer struct {
	// podSelector selects pods of the policy's namespace, or of the namespaces
	// that namespaceSelector selects.
	// +optional
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`
	// namespaceSelector selects namespaces; an empty selector selects all.
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	// serviceAccounts selects by service account.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	// +optional
	ServiceAccounts []ServiceAccountRef `json:"serviceAccounts,omitempty"`
	// serviceAccountSelector selects by the labels of the service account, in the
	// policy's namespace or in those that namespaceSelector selects.
	// +optional
	ServiceAccountSelector *metav1.LabelSelector `json:"serviceAccountSelector,omitempty"`
	// principals are SPIFFE IDs that the peer proves by mTLS; one trailing "*" may
	// stand for any rest.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	// +kubebuilder:validation:items:MaxLength=2048
	// +kubebuilder:validation:items:Pattern=`^spiffe://[^*]*\*?$`
	// +optional
	Principals []string `json:"principals,omitempty"`
	// networks are address ranges with exceptions.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=1000
	// +optional
	Networks []Network `json:"networks,omitempty"`
	// networkSets are named lists of address ranges.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=10
	// +optional
	NetworkSets []NetworkSetRef `json:"networkSets,omitempty"`
	// nodeSelector selects nodes, and with them their host-network pods, by the
	// nodes' labels; an empty selector selects all.
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	// services are Services: as destinations their pods at the ports to which they
	// translate, as sources their pods.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	// +optional
	Services []ServiceRef `json:"services,omitempty"`
	// entities are cluster (pods and nodes), host (nodes) and world (neither).
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=3
	// +kubebuilder:validation:items:Enum=cluster;host;world
	// +optional
	Entities []string `json:"entities,omitempty"`
}

// NetworkSetRef names a network set, or selects several.
//
// +kubebuilder:validation:XValidation:rule="has(self.name) != has(self.selector)",message="set exactly one of name and selector"
type NetworkSetRef struct {
	// kind of the set: in a MeshPolicy NetworkSet by default, in a
	// ClusterMeshPolicy ClusterNetworkSet.
	// +kubebuilder:validation:Enum=NetworkSet;ClusterNetworkSet
	// +optional
	Kind string `json:"kind,omitempty"`
	// name of the set.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Name string `json:"name,omitempty"`
	// selector selects sets by their labels.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
	// namespace of a NetworkSet, in a ClusterMeshPolicy only: a MeshPolicy knows
	// those of its own.
	// +kubebuilder:validation:MaxLength=63
	// +optional
	Namespace string `json:"namespace,omitempty"`
}

// ServiceRef names a Service.
type ServiceRef struct {
	// name of the Service.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
	// namespace of the Service; the policy's own by default. A ClusterMeshPolicy
	// must name it.
	// +kubebuilder:validation:MaxLength=63
	// +optional
	Namespace string `json:"namespace,omitempty"`
}

// ServiceAccountRef names a service account.
type ServiceAccountRef struct {
	// name of the service account.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// namespace of the service account; the policy's own by default. A
	// ClusterMeshPolicy must name it.
	// +kubebuilder:validation:MaxLength=63
	// +optional
	Namespace string `json:"namespace,omitempty"`
}

// Network is an address range.
type Network struct {
	// cidr such as 10.0.0.0/8 or fd00::/8.
	// +kubebuilder:validation:MaxLength=49
	// +kubebuilder:validation:Format=cidr
	CIDR string `json:"cidr"`
	// except are ranges inside cidr that do not count.
	// +kubebuilder:validation:MaxItems=100
	// +kubebuilder:validation:items:MaxLength=49
	// +kubebuilder:validation:items:Format=cidr
	// +optional
	Except []string `json:"except,omitempty"`
}

// RulePort is a protocol with ports.
//
// +kubebuilder:validation:XValidation:rule="!has(self.endPort) || has(self.port)",message="endPort needs port"
// +kubebuilder:validation:XValidation:rule="!has(self.port) || type(self.port) != int || (self.port >= 1 && self.port <= 65535)",message="port must be 1 to 65535: leave it out to mean all ports"
// +kubebuilder:validation:XValidation:rule="!has(self.endPort) || !has(self.port) || (type(self.port) == int && self.endPort >= self.port)",message="endPort needs a port number that is not above it"
// +kubebuilder:validation:XValidation:rule="!has(self.port) || !has(self.protocol) || !(self.protocol in ['ICMP','ICMPv6'])",message="ICMP has no ports: use icmp.type and icmp.code"
// +kubebuilder:validation:XValidation:rule="!has(self.icmp) || (has(self.protocol) && self.protocol in ['ICMP','ICMPv6'])",message="icmp needs protocol ICMP or ICMPv6"
type RulePort struct {
	// protocol of the traffic.
	// +kubebuilder:validation:Enum=TCP;UDP;SCTP;ICMP;ICMPv6
	// +kubebuilder:default=TCP
	// +optional
	Protocol string `json:"protocol,omitempty"`
	// port is a number or the name of a container port; absent means all.
	// +optional
	Port *intstr.IntOrString `json:"port,omitempty"`
	// endPort is the last port of a range that starts at port.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	// +optional
	EndPort *int32 `json:"endPort,omitempty"`
	// icmp limits ICMP by type and code.
	// +optional
	ICMP *ICMPMatch `json:"icmp,omitempty"`
}

// ICMPMatch is an ICMP type and code (IANA ICMP parameters).
type ICMPMatch struct {
	// type of the message.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=255
	Type int32 `json:"type"`
	// code of the message; absent means any.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=255
	// +optional
	Code *int32 `json:"code,omitempty"`
}

// HTTPMatch is one kind of request. Its fields are ANDed.
//
// +kubebuilder:validation:MinProperties=1
type HTTPMatch struct {
	// methods, exact: GET is not get.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=20
	// +kubebuilder:validation:items:Pattern=`^[A-Z][A-Z-]{0,31}$`
	// +optional
	Methods []string `json:"methods,omitempty"`
	// paths, compared with the normalised path without its query.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=25
	// +optional
	Paths []PathMatch `json:"paths,omitempty"`
	// hosts without port; a leading "*." stands for one or more labels.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	// +kubebuilder:validation:items:MaxLength=253
	// +optional
	Hosts []string `json:"hosts,omitempty"`
	// headers that must all match.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=20
	// +optional
	Headers []HeaderMatch `json:"headers,omitempty"`
	// query parameters that must all match.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=20
	// +optional
	Query []QueryMatch `json:"query,omitempty"`
}

// QueryMatch is a condition on one query parameter.
type QueryMatch struct {
	// name of the parameter, decoded.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Name string `json:"name"`
	// values, exact and decoded; each value of the parameter is compared on its own.
	// Absent means that the parameter is present.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=20
	// +kubebuilder:validation:items:MaxLength=1024
	// +optional
	Values []string `json:"values,omitempty"`
}

// GRPCMatch is gRPC methods.
//
// +kubebuilder:validation:MinProperties=1
type GRPCMatch struct {
	// service is the full name, package.Service; absent means any.
	// +kubebuilder:validation:Pattern=`^[A-Za-z_][A-Za-z0-9_.]*$`
	// +kubebuilder:validation:MaxLength=512
	// +optional
	Service string `json:"service,omitempty"`
	// method is its name alone; absent means any.
	// +kubebuilder:validation:Pattern=`^[A-Za-z_][A-Za-z0-9_]*$`
	// +kubebuilder:validation:MaxLength=256
	// +optional
	Method string `json:"method,omitempty"`
}

// PathMatch is how a path is compared: exactly one of its fields is set.
//
// +kubebuilder:validation:MaxProperties=2
// +kubebuilder:validation:XValidation:rule="(has(self.exact) != has(self.prefix)) != (has(self.template) != has(self.regex))",message="set exactly one of exact, prefix, template and regex"
type PathMatch struct {
	// exact is the whole path.
	// +kubebuilder:validation:Pattern=`^/`
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	Exact string `json:"exact,omitempty"`
	// prefix is whole leading segments: /v2/keys matches /v2/keys and /v2/keys/a,
	// not /v2/keysmith.
	// +kubebuilder:validation:Pattern=`^/`
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	Prefix string `json:"prefix,omitempty"`
	// template is a whole path in which {name} stands for one segment that is not
	// empty: /users/{id} matches /users/7, not /users/7/keys.
	// +kubebuilder:validation:Pattern=`^(/([^/{}]*|\{[A-Za-z0-9_]+\}))+$`
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	Template string `json:"template,omitempty"`
	// regex is an RE2 expression for the whole path.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	// +optional
	Regex string `json:"regex,omitempty"`
}

// HeaderMatch is a condition on one header.
type HeaderMatch struct {
	// name of the header, in any case.
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9!#$%&'*+.^_|~-]+$`
	// +kubebuilder:validation:MaxLength=256
	Name string `json:"name"`
	// values, exact; each value of the header is compared on its own. Absent
	// means that the header is present.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=20
	// +optional
	Values []string `json:"values,omitempty"`
}

// Requirements are conditions on a connection.
type Requirements struct {
	// mtls: the peer proved an identity.
	// +optional
	MTLS bool `json:"mtls,omitempty"`
}

// PolicyStatus says how far a policy is in force.
type PolicyStatus struct {
	// conditions: Accepted, ResolvedRefs, Programmed.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// subjects is how many pods the policy selects.
	// +optional
	Subjects int32 `json:"subjects,omitempty"`
}
