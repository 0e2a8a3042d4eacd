// Package istio converts Istio's AuthorizationPolicy and PeerAuthentication. It
// owns what they mean and how that is said in Hauberk's kinds: DENY before ALLOW
// as tiers, what is negated as order, and what of it can't be said.
package istio

// The shapes of security.istio.io, field by field as its reference lists them.

type authorizationObject struct {
	Spec authorization `json:"spec"`
}

type authorization struct {
	Selector   *workloadSelector `json:"selector"`
	TargetRef  *targetRef        `json:"targetRef"`
	TargetRefs []targetRef       `json:"targetRefs"`
	Action     string            `json:"action"`
	Provider   *struct {
		Name string `json:"name"`
	} `json:"provider"`
	Rules []rule `json:"rules"`
}

type workloadSelector struct {
	MatchLabels map[string]string `json:"matchLabels"`
}

type targetRef struct {
	Group     string `json:"group"`
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type rule struct {
	From []struct {
		Source *source `json:"source"`
	} `json:"from"`
	To []struct {
		Operation *operation `json:"operation"`
	} `json:"to"`
	When []condition `json:"when"`
}

type source struct {
	Principals           []string `json:"principals"`
	NotPrincipals        []string `json:"notPrincipals"`
	RequestPrincipals    []string `json:"requestPrincipals"`
	NotRequestPrincipals []string `json:"notRequestPrincipals"`
	Namespaces           []string `json:"namespaces"`
	NotNamespaces        []string `json:"notNamespaces"`
	ServiceAccounts      []string `json:"serviceAccounts"`
	NotServiceAccounts   []string `json:"notServiceAccounts"`
	IPBlocks             []string `json:"ipBlocks"`
	NotIPBlocks          []string `json:"notIpBlocks"`
	RemoteIPBlocks       []string `json:"remoteIpBlocks"`
	NotRemoteIPBlocks    []string `json:"notRemoteIpBlocks"`
}

type operation struct {
	Hosts      []string `json:"hosts"`
	NotHosts   []string `json:"notHosts"`
	Ports      []string `json:"ports"`
	NotPorts   []string `json:"notPorts"`
	Methods    []string `json:"methods"`
	NotMethods []string `json:"notMethods"`
	Paths      []string `json:"paths"`
	NotPaths   []string `json:"notPaths"`
}

type condition struct {
	Key       string   `json:"key"`
	Values    []string `json:"values"`
	NotValues []string `json:"notValues"`
}

type peerAuthenticationObject struct {
	Spec struct {
		Selector      *workloadSelector `json:"selector"`
		MTLS          *mtls             `json:"mtls"`
		PortLevelMTLS map[string]mtls   `json:"portLevelMtls"`
	} `json:"spec"`
}

type mtls struct {
	Mode string `json:"mode"`
}
