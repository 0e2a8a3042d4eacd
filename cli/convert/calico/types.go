// Package calico converts Calico's v3 policies, tiers and network sets. It owns
// what they mean and how that is said in Hauberk's kinds: the order of policies,
// whom a selector selects, and what of it can't be said.
package calico

import "k8s.io/apimachinery/pkg/util/intstr"

// The shapes of projectcalico.org/v3, field by field as its reference lists
// them. crd.projectcalico.org/v1 has the same.

type policyObject struct {
	Spec policySpec `json:"spec"`
}

type policySpec struct {
	Tier                   string   `json:"tier"`
	Order                  *float64 `json:"order"`
	Selector               string   `json:"selector"`
	NamespaceSelector      string   `json:"namespaceSelector"`
	ServiceAccountSelector string   `json:"serviceAccountSelector"`
	Types                  []string `json:"types"`
	Ingress                []rule   `json:"ingress"`
	Egress                 []rule   `json:"egress"`
	DoNotTrack             bool     `json:"doNotTrack"`
	PreDNAT                bool     `json:"preDNAT"`
	ApplyOnForward         bool     `json:"applyOnForward"`
	PerformanceHints       []string `json:"performanceHints"`
	StagedAction           string   `json:"stagedAction"`
}

type rule struct {
	Action      string              `json:"action"`
	Metadata    *ruleMetadata       `json:"metadata"`
	Protocol    *intstr.IntOrString `json:"protocol"`
	NotProtocol *intstr.IntOrString `json:"notProtocol"`
	ICMP        *icmp               `json:"icmp"`
	NotICMP     *icmp               `json:"notICMP"`
	IPVersion   *int                `json:"ipVersion"`
	Source      entity              `json:"source"`
	Destination entity              `json:"destination"`
	HTTP        *httpMatch          `json:"http"`
}

type ruleMetadata struct {
	Annotations map[string]string `json:"annotations"`
}

type icmp struct {
	Type *int32 `json:"type"`
	Code *int32 `json:"code"`
}

type entity struct {
	Nets              []string             `json:"nets"`
	NotNets           []string             `json:"notNets"`
	Selector          string               `json:"selector"`
	NotSelector       string               `json:"notSelector"`
	NamespaceSelector string               `json:"namespaceSelector"`
	Ports             []intstr.IntOrString `json:"ports"`
	NotPorts          []intstr.IntOrString `json:"notPorts"`
	ServiceAccounts   *accounts            `json:"serviceAccounts"`
	Services          *service             `json:"services"`
	Domains           []string             `json:"domains"`
}

type accounts struct {
	Names    []string `json:"names"`
	Selector string   `json:"selector"`
}

type service struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type httpMatch struct {
	Methods []string   `json:"methods"`
	Paths   []httpPath `json:"paths"`
}

type httpPath struct {
	Exact  string `json:"exact"`
	Prefix string `json:"prefix"`
}

type setObject struct {
	Spec struct {
		Nets                 []string `json:"nets"`
		AllowedEgressDomains []string `json:"allowedEgressDomains"`
	} `json:"spec"`
}

type tierObject struct {
	Spec struct {
		Order         *float64 `json:"order"`
		DefaultAction string   `json:"defaultAction"`
	} `json:"spec"`
}
