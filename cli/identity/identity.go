// Package identity is `hauberk identity`: who a pod is in the mesh, as its
// sidecar says, held against what the cluster knows of it.
package identity

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/hauberk-mesh/hauberk/cli/mesh"
	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Command is `hauberk identity`.
func Command(env *run.Env) *cobra.Command {
	c := &cobra.Command{Use: "identity", Short: "Look at identities: certificates, their chain, expiry and what they are bound to"}
	var timeout time.Duration
	show := &cobra.Command{
		Use:   "show POD",
		Short: "Show the certificate of a pod's sidecar and check it against the pod and the trust roots",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			clients, err := env.Clients()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			return show(ctx, clients, env, args[0])
		},
	}
	show.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to look")
	c.AddCommand(show)
	return c
}

// Shown is the answer.
type Shown struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"`
	Pod        string        `json:"pod"`
	PodUID     string        `json:"podUID"`
	SPIFFEID   string        `json:"spiffeID"`
	Expires    time.Time     `json:"expires,omitzero"`
	Chain      []Certificate `json:"chain"`
	Roots      []Certificate `json:"roots"`
	OK         bool          `json:"ok"`
	Findings   []Finding     `json:"findings"`
}

// Certificate is what matters of one.
type Certificate struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	URIs      []string  `json:"uris,omitempty"`
	DNSNames  []string  `json:"dnsNames,omitempty"`
	CA        bool      `json:"ca"`
}

// Finding is one thing that was held against the cluster.
type Finding struct {
	OK   bool   `json:"ok"`
	What string `json:"what"`
}

func describe(c *x509.Certificate) Certificate {
	out := Certificate{Subject: c.Subject.String(), Issuer: c.Issuer.String(), Serial: fmt.Sprintf("%x", c.SerialNumber),
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, DNSNames: c.DNSNames, CA: c.IsCA}
	for _, u := range c.URIs {
		out.URIs = append(out.URIs, u.String())
	}
	return out
}

func show(ctx context.Context, c *run.Clients, env *run.Env, ref string) error {
	p, err := mesh.FindSidecar(ctx, c, ref, env.CurrentNamespace())
	if err != nil {
		return err
	}
	settings, err := mesh.ReadSettings(ctx, c)
	if err != nil {
		return err
	}
	var status mesh.ProxyStatus
	if err := c.PodJSON(ctx, p.Namespace, p.Name, names.PortAdmin, "/status", &status); err != nil {
		return err
	}
	var pem []byte
	if status.Identity != "" {
		pem, err = c.PodDo(ctx, http.MethodGet, p.Namespace, p.Name, names.PortAdmin, "/identity", nil)
		if err != nil {
			return run.Fail(run.ExitRuntime, "a sidecar of another version may not show it: restart the pod", "%w", err)
		}
	}
	chain, err := mesh.Certificates(string(pem))
	if err != nil {
		return fmt.Errorf("the chain of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	roots, err := mesh.Certificates(settings.Inject.TrustBundle)
	if err != nil {
		return fmt.Errorf("ConfigMap %s/%s: %w", names.Namespace, names.TrustBundleConfigMap, err)
	}
	s := judge(p, settings.Inject.TrustDomain, status.Identity, chain, roots, env.Time())
	if done, err := env.Structured(s); err != nil {
		return err
	} else if !done {
		s.print(env, env.Time())
	}
	if !s.OK {
		return run.Told(run.ExitFindings)
	}
	return nil
}

// judge holds a certificate against the pod that shows it.
func judge(p *corev1.Pod, trustDomain, told string, chain, roots []*x509.Certificate, now time.Time) *Shown {
	s := &Shown{APIVersion: run.OutputVersion, Kind: "Identity", Pod: p.Namespace + "/" + p.Name, PodUID: string(p.UID), SPIFFEID: told,
		Chain: []Certificate{}, Roots: []Certificate{}, OK: true}
	find := func(ok bool, good, bad string) {
		text := good
		if !ok {
			text, s.OK = bad, false
		}
		s.Findings = append(s.Findings, Finding{ok, text})
	}
	for _, c := range chain {
		s.Chain = append(s.Chain, describe(c))
	}
	pool := x509.NewCertPool()
	for _, c := range roots {
		s.Roots = append(s.Roots, describe(c))
		pool.AddCert(c)
	}
	if len(chain) == 0 {
		find(false, "", "the sidecar has no certificate yet: see its log for why the control plane gives it none")
		return s
	}
	leaf := chain[0]
	s.Expires = leaf.NotAfter
	account := p.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	want := fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", trustDomain, p.Namespace, account)
	var uris []string
	for _, u := range leaf.URIs {
		uris = append(uris, u.String())
	}
	got := strings.Join(uris, ", ")
	find(got == want, "it says the pod's service account: "+want, fmt.Sprintf("it says %q; the pod's service account is %s", got, want))
	binding := string(p.UID) + names.PodSANSuffix
	bound := len(leaf.DNSNames) == 1 && leaf.DNSNames[0] == binding
	find(bound, "it is bound to this pod: "+binding, fmt.Sprintf("it is bound to %s and not to this pod, %s", strings.Join(leaf.DNSNames, ", "), binding))
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
	find(err == nil, "it leads to a trust root of the mesh", fmt.Sprintf("it does not lead to a trust root of the mesh: %v", err))
	renewal := leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * 3 / 4)
	switch {
	case !now.Before(leaf.NotAfter):
		find(false, "", "it has ended: the sidecar cannot renew it; is it connected to the control plane?")
	case now.After(renewal):
		find(false, "", "three quarters of its time are over and it is not renewed: is the sidecar connected to the control plane?")
	default:
		find(true, "it is renewed in time", "")
	}
	return s
}

func (s *Shown) print(env *run.Env, now time.Time) {
	fmt.Fprintf(env.Out, "%s %s\n", env.Paint(env.Out, run.Bold, "pod"), s.Pod)
	id := s.SPIFFEID
	if id == "" {
		id = "(none)"
	}
	fmt.Fprintf(env.Out, "  SPIFFE ID  %s\n", id)
	if !s.Expires.IsZero() {
		fmt.Fprintf(env.Out, "  valid      until %s (%s)\n", s.Expires.UTC().Format("2006-01-02 15:04 MST"), remaining(now, s.Expires))
	}
	for i, c := range s.Chain {
		fmt.Fprintf(env.Out, "  chain[%d]   %s, serial %s, issued by %s\n", i, c.name(), c.Serial, c.Issuer)
	}
	for _, c := range s.Roots {
		fmt.Fprintf(env.Out, "  root       %s, until %s\n", c.Subject, c.NotAfter.UTC().Format("2006-01-02"))
	}
	for _, f := range s.Findings {
		mark := env.Good()
		if !f.OK {
			mark = env.Bad()
		}
		fmt.Fprintf(env.Out, "  %s %s\n", mark, f.What)
	}
}

func (c *Certificate) name() string {
	if len(c.URIs) > 0 {
		return strings.Join(append(append([]string(nil), c.URIs...), c.DNSNames...), ", ")
	}
	return c.Subject
}

func remaining(now, t time.Time) string {
	if !t.After(now) {
		return "ended"
	}
	return "in " + run.Duration(t.Sub(now))
}
