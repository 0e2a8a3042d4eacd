package source

import (
	"fmt"
	"strconv"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/policy"
)

// The MeshConfig's name, and what holds without one.
const (
	meshConfigName          = "default"
	defaultSamplingPerMille = 10
)

// meshFrom reads the MeshConfig. Of one that can't be read at all only the
// strict side of each setting holds.
func meshFrom(o *Objects, problems *[]string) compile.Mesh {
	m := compile.Mesh{
		TrustDomain: o.TrustDomain, Roots: o.Roots,
		DefaultAction:       policy.Allow,
		BootstrapNamespaces: []string{"kube-system"},
		SamplingRatio:       defaultSamplingPerMille / 1000.0,
		AccessLog:           true,
	}
	for _, u := range o.MeshConfigs {
		if u.GetName() != meshConfigName {
			continue
		}
		var spec v1alpha1.MeshConfigSpec
		if err := decodeSpec(u, &spec); err != nil {
			*problems = append(*problems, fmt.Sprintf("MeshConfig %s: %s", u.GetName(), err))
		}
		switch spec.DefaultAction {
		case "Allow", "":
		default:
			m.DefaultAction = policy.Deny
		}
		if spec.BootstrapNamespaces != nil {
			m.BootstrapNamespaces = spec.BootstrapNamespaces
		}
		m.EncryptionDisabled = spec.Encryption.Mode == "Disabled"
		m.OTLPEndpoint = spec.Telemetry.OTLPEndpoint
		if n := spec.Telemetry.SamplingPerMille; n != nil {
			m.SamplingRatio = min(1, max(0, float64(*n)/1000))
		}
		if a := spec.Telemetry.AccessLog; a != nil {
			m.AccessLog = *a
		}
		m.DenyResponseHeader = spec.DenyResponseHeader
	}
	return m
}

func tierFrom(u *unstructured.Unstructured, problems *[]string) compile.Tier {
	var spec v1alpha1.TierSpec
	t := compile.Tier{Name: u.GetName(), Ref: refFrom(u, "Tier"), DefaultAction: policy.Deny}
	if err := decodeSpec(u, &spec); err != nil {
		t.Invalid = err.Error()
	}
	t.Order = float64(spec.Order)
	switch spec.DefaultAction {
	case "", "Deny":
	case "Pass":
		t.DefaultAction = policy.Pass
	default:
		t.Invalid = fmt.Sprintf("spec.defaultAction: %q is neither Deny nor Pass", spec.DefaultAction)
	}
	if t.Invalid != "" {
		*problems = append(*problems, fmt.Sprintf("Tier %s: %s", t.Name, t.Invalid))
		t.DefaultAction = policy.Deny
	}
	return t
}

func peerAuthenticationFrom(u *unstructured.Unstructured) compile.PeerAuthentication {
	var spec v1alpha1.PeerAuthenticationSpec
	var why reasons
	if err := decodeSpec(u, &spec); err != nil {
		why.add("%s", err)
	}
	a := compile.PeerAuthentication{
		Ref:         refFrom(u, "PeerAuthentication"),
		PodSelector: selectorFrom(spec.PodSelector, "spec.podSelector", &why),
		Strict:      strictMode(spec.MTLS.Mode, "spec.mtls.mode", &why),
	}
	for text, mtls := range spec.PortLevelMTLS {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == 0 {
			why.add("spec.portLevelMtls: %q is no port number", text)
			continue
		}
		if a.PortStrict == nil {
			a.PortStrict = make(map[uint16]bool)
		}
		a.PortStrict[uint16(port)] = strictMode(mtls.Mode, "spec.portLevelMtls."+text, &why)
	}
	a.Invalid = why.String()
	return a
}

// strictMode is true in doubt.
func strictMode(mode, place string, why *reasons) bool {
	switch mode {
	case "PERMISSIVE":
		return false
	case "STRICT":
		return true
	}
	why.add("%s: %q is neither STRICT nor PERMISSIVE", place, mode)
	return true
}
