package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/identity"
)

// leaf is the certificate that a pod shows to a client of the mesh.
func leaf(ctx context.Context, p *running, port uint16) (*x509.Certificate, error) {
	conn, err := nodePlace(p.Spec.NodeName).dial(ctx, "tcp", netip.AddrPortFrom(p.v4, port).String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// What is shown is looked at, not trusted.
	client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"hauberk/http1"}, MinVersion: tls.VersionTLS13}) //nolint:gosec
	if err := client.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return client.ConnectionState().PeerCertificates[0], nil
}

func TestCertificateOnTheWireNamesAccountAndPodAndNothingElse(t *testing.T) {
	w := together(t)
	s := w.meshed(t, "svid")
	s.accounts("teller")
	p := s.run(server("one", as("teller")))[0]
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got := must[*x509.Certificate](t)(leaf(ctx, p, httpPort))
	uris := make([]string, 0, 1)
	for _, u := range got.URIs {
		uris = append(uris, u.String())
	}
	if d := cmp.Diff([]string{"spiffe://cluster.local/ns/" + s.name + "/sa/teller"}, uris); d != "" {
		t.Errorf("URI SANs: %s", d)
	}
	if d := cmp.Diff([]string{string(p.UID) + ".pod.hauberk.internal"}, got.DNSNames); d != "" {
		t.Errorf("DNS SANs: %s", d)
	}
	if len(got.IPAddresses)+len(got.EmailAddresses) != 0 || got.IsCA {
		t.Errorf("further names %v %v, CA %v", got.IPAddresses, got.EmailAddresses, got.IsCA)
	}
	if life := got.NotAfter.Sub(got.NotBefore); life < 24*time.Hour || life > 25*time.Hour {
		t.Errorf("it lives %s", life)
	}
	if left := time.Until(got.NotAfter); left > 24*time.Hour+time.Minute || left < 23*time.Hour {
		t.Errorf("it ends in %s", left)
	}
	roots := must[[]*x509.Certificate](t)(w.roots(t.Context()))
	source := must[*identity.Source](t)(identity.NewSource(trustDomain, roots))
	if _, err := source.VerifyPeer([]*x509.Certificate{got}, x509.ExtKeyUsageServerAuth); err != nil {
		t.Errorf("it is not of the mesh's root: %v", err)
	}
}

var trustDomain = spiffeid.RequireTrustDomainFromString("cluster.local")

// roots are of the mesh.
func (w *world) roots(ctx context.Context) ([]*x509.Certificate, error) {
	bundle, err := w.client.CoreV1().ConfigMaps(system).Get(ctx, "hauberk-trust-bundle", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return identity.ParseRoots([]byte(bundle.Data["ca.crt"]))
}

// control connects to the control plane from a node; certificate may be nil.
func (w *world) control(t *testing.T, svid *x509svid.SVID) *grpc.ClientConn {
	t.Helper()
	service := must[*corev1.Service](t)(w.client.CoreV1().Services(system).Get(t.Context(), "hauberk-control", metav1.GetOptions{}))
	roots := must[[]*x509.Certificate](t)(w.roots(t.Context()))
	source := must[*identity.Source](t)(identity.NewSource(trustDomain, roots))
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, //nolint:gosec // verified below, by identity and not by name
		VerifyConnection: func(state tls.ConnectionState) error {
			peer, err := source.VerifyPeer(state.PeerCertificates, x509.ExtKeyUsageServerAuth)
			if err == nil && peer.ID != identity.ControlID(trustDomain) {
				err = fmt.Errorf("the server is %s", peer.ID)
			}
			return err
		},
	}
	if svid != nil {
		chain := make([][]byte, 0, len(svid.Certificates))
		for _, c := range svid.Certificates {
			chain = append(chain, c.Raw)
		}
		config.Certificates = []tls.Certificate{{Certificate: chain, PrivateKey: svid.PrivateKey}}
	}
	conn, err := grpc.NewClient("passthrough:///"+net.JoinHostPort(service.Spec.ClusterIP, "15012"),
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return nodePlace("node1").dial(ctx, "tcp", address)
		}))
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// token asks the API server for a service account's, bound to a pod if one is
// given.
func (s *space) token(account string, p *corev1.Pod, audience string) string {
	s.t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}
	if p != nil {
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID}
	}
	got := must[*authenticationv1.TokenRequest](s.t)(s.client.CoreV1().ServiceAccounts(s.name).CreateToken(s.t.Context(), account, request, metav1.CreateOptions{}))
	return got.Status.Token
}

// sign asks the CA for a certificate and asks for names that are not its own.
func sign(ctx context.Context, conn *grpc.ClientConn, token string, names ...string) (*x509svid.SVID, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	request := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "hauberk-control"}, DNSNames: []string{"kubernetes.default"}}
	for _, n := range names {
		u, err := url.Parse(n)
		if err != nil {
			return nil, err
		}
		request.URIs = append(request.URIs, u)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, request, key)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	got, err := hauberkv1.NewCertificateAuthorityClient(conn).Sign(ctx, &hauberkv1.SignRequest{Csr: csr})
	if err != nil {
		return nil, err
	}
	svid := &x509svid.SVID{PrivateKey: key}
	for _, der := range got.GetChain() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		svid.Certificates = append(svid.Certificates, c)
	}
	if len(svid.Certificates) == 0 {
		return nil, errors.New("the chain is empty")
	}
	svid.ID, err = x509svid.IDFromCert(svid.Certificates[0])
	return svid, err
}

func TestOnlyATokenOfAPodForTheMeshGetsACertificateAndOnlyItsOwn(t *testing.T) {
	w := together(t)
	s := w.space(t, "ca", nil)
	s.accounts("teller", "robber")
	made := s.run(client("teller", as("teller")), client("gone", as("robber")))
	conn := w.control(t, nil)
	gone := s.token("robber", made[1].Pod, "hauberk-ca")
	check(t, s.client.CoreV1().Pods(s.name).Delete(t.Context(), "gone", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
	for name, token := range map[string]string{
		"no token":                        "",
		"not a token":                     "hello",
		"a token for the API server":      s.token("teller", made[0].Pod, "https://kubernetes.default.svc.cluster.local"),
		"a token for somebody else":       s.token("teller", made[0].Pod, "vault"),
		"a token that no pod is bound to": s.token("teller", nil, "hauberk-ca"),
	} {
		t.Run(name, func(t *testing.T) {
			svid, err := sign(t.Context(), conn, token)
			if err == nil {
				t.Fatalf("it got a certificate of %s", svid.ID)
			}
			if code := status.Code(err); code != codes.Unauthenticated && code != codes.PermissionDenied {
				t.Errorf("it is refused with %s: %v", code, err)
			}
			if token != "" && strings.Contains(err.Error(), token) {
				t.Error("the refusal shows the token")
			}
		})
	}
	t.Run("a token of a pod that is gone", func(t *testing.T) {
		// The API server may answer from its cache for a moment.
		within(t, 30*time.Second, "it gets none", func(ctx context.Context) error {
			if _, err := sign(ctx, conn, gone); status.Code(err) != codes.Unauthenticated && status.Code(err) != codes.PermissionDenied {
				return fmt.Errorf("the answer is %w", err)
			}
			return nil
		})
	})
	t.Run("its own, whatever the request asks for", func(t *testing.T) {
		svid, err := sign(t.Context(), conn, s.token("teller", made[0].Pod, "hauberk-ca"), "spiffe://cluster.local/ns/hauberk-system/sa/hauberk-node", "spiffe://cluster.local/ns/"+s.name+"/sa/robber")
		check(t, err)
		peer, err := identity.PeerFromCertificate(svid.Certificates[0])
		check(t, err)
		want := identity.Peer{ID: spiffeid.RequireFromString("spiffe://cluster.local/ns/" + s.name + "/sa/teller"), PodUID: string(made[0].UID)}
		if peer.ID != want.ID || peer.PodUID != want.PodUID || peer.Node != "" {
			t.Errorf("the certificate is of %+v, want %+v", peer, want)
		}
		if cn := svid.Certificates[0].Subject.CommonName; cn == "hauberk-control" {
			t.Errorf("the request's common name %q is in it", cn)
		}
	})
}

// received reads the first response of a type, or the error that ends the stream.
func received(ctx context.Context, conn *grpc.ClientConn, request *hauberkv1.DiscoveryRequest) (*hauberkv1.DiscoveryResponse, error) {
	stream, err := hauberkv1.NewDiscoveryClient(conn).Stream(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(request); err != nil {
		return nil, err
	}
	return stream.Recv()
}

func TestDiscoveryTellsEachOnlyWhatIsItsOwn(t *testing.T) {
	w := together(t)
	s := w.meshed(t, "disco")
	made := s.run(client("one"), client("two"))
	request := func(kind hauberkv1.ResourceType) *hauberkv1.DiscoveryRequest {
		return &hauberkv1.DiscoveryRequest{ClientVersion: "e2e", Type: kind, Subscribe: []string{"*"}}
	}
	t.Run("nothing without a certificate", func(t *testing.T) {
		got, err := received(t.Context(), w.control(t, nil), request(hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD))
		if err == nil {
			t.Fatalf("it got %v", got)
		}
		if code := status.Code(err); code != codes.Unauthenticated && code != codes.PermissionDenied {
			t.Errorf("it is refused with %s: %v", code, err)
		}
	})
	svid, err := sign(t.Context(), w.control(t, nil), s.token("default", made[0].Pod, "hauberk-ca"))
	check(t, err)
	conn := w.control(t, svid)
	t.Run("its own pod to a sidecar", func(t *testing.T) {
		for _, kind := range []hauberkv1.ResourceType{hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD, hauberkv1.ResourceType_RESOURCE_TYPE_POLICY_SET} {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			got, err := received(ctx, conn, request(kind))
			cancel()
			check(t, err)
			if len(got.GetResources()) != 1 {
				t.Errorf("%s: %d resources, want its own", kind, len(got.GetResources()))
			}
			if kind == hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD && len(got.GetResources()) == 1 {
				if name := got.GetResources()[0].GetName(); name != "uid/"+string(made[0].UID) {
					t.Errorf("the workload is %s", name)
				}
			}
		}
	})
	t.Run("no tunnel peers and no peer sets to a sidecar", func(t *testing.T) {
		for _, kind := range []hauberkv1.ResourceType{hauberkv1.ResourceType_RESOURCE_TYPE_TUNNEL_PEER, hauberkv1.ResourceType_RESOURCE_TYPE_PEER_SET} {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			got, err := received(ctx, conn, request(kind))
			cancel()
			if err == nil && len(got.GetResources()) != 0 {
				t.Errorf("%s: it got %v", kind, got)
			}
		}
	})
	t.Run("no word of a sidecar is a node's", func(t *testing.T) {
		before := must[*corev1.ConfigMap](t)(w.client.CoreV1().ConfigMaps(system).Get(t.Context(), "hauberk-tunnels", metav1.GetOptions{}))
		r := request(hauberkv1.ResourceType_RESOURCE_TYPE_WORKLOAD)
		r.NodeReport = &hauberkv1.NodeReport{WireguardPublicKey: make([]byte, 32), WireguardPort: 1, WireguardBackend: "kernel"}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := received(ctx, conn, r)
		t.Logf("the report is answered with: %v", err)
		after := must[*corev1.ConfigMap](t)(w.client.CoreV1().ConfigMaps(system).Get(t.Context(), "hauberk-tunnels", metav1.GetOptions{}))
		if d := cmp.Diff(before.Data, after.Data); d != "" {
			t.Errorf("the tunnels' keys changed: %s", d)
		}
	})
}
