package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

const podUID = "5a1ccd8c-5be2-4f1f-a4c8-6d9f3a4d8e11"

var td = spiffeid.RequireTrustDomainFromString("cluster.local")

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func open(t testing.TB, client *fake.Clientset) *Authority {
	t.Helper()
	a, err := Open(t.Context(), Options{Client: client, TrustDomain: td, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// installed is a cluster in which the installation made the CA's Secret. Like
// an API server it refuses what is based on an older version.
func installed() *fake.Clientset {
	client := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: names.CASecret, Namespace: names.Namespace, ResourceVersion: "0"}})
	var mu sync.Mutex
	version := 0
	client.PrependReactor("update", "secrets", func(action clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		secret := action.(clienttesting.UpdateAction).GetObject().(*corev1.Secret).DeepCopy()
		if secret.ResourceVersion != strconv.Itoa(version) {
			return true, nil, apierrors.NewConflict(action.GetResource().GroupResource(), secret.Name, errors.New("it was changed"))
		}
		version++
		secret.ResourceVersion = strconv.Itoa(version)
		return true, secret, client.Tracker().Update(action.GetResource(), secret, secret.Namespace)
	})
	return client
}

// newRootSecret is the CA's Secret with a root that was made now.
func newRootSecret(namespace string, td spiffeid.TrustDomain, now time.Time) (*corev1.Secret, error) {
	data, err := newRootData(td, now)
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: names.CASecret, Namespace: namespace}, Type: corev1.SecretTypeOpaque, Data: data}, err
}

// TestSecretIsTheInstallations: the control plane makes no Secret, and fills
// none that has half a root.
func TestSecretIsTheInstallations(t *testing.T) {
	secret := func(data map[string][]byte) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: names.CASecret, Namespace: names.Namespace}, Data: data}
	}
	for _, tc := range []struct {
		name   string
		client *fake.Clientset
		want   string
	}{
		{"none", fake.NewClientset(), "hauberk upgrade"},
		{"key without certificate", fake.NewClientset(secret(map[string][]byte{corev1.TLSPrivateKeyKey: []byte("x")})), "tls.crt is no PEM certificate"},
		{"certificate without key", fake.NewClientset(secret(map[string][]byte{corev1.TLSCertKey: []byte("x")})), "tls.crt is no PEM certificate"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Open(t.Context(), Options{Client: tc.client, TrustDomain: td, Log: quiet()})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			for _, a := range tc.client.Actions() {
				if a.GetVerb() != "get" {
					t.Errorf("%s of %s", a.GetVerb(), a.GetResource().Resource)
				}
			}
		})
	}
}

func bundle(t *testing.T, client *fake.Clientset) *corev1.ConfigMap {
	t.Helper()
	cm, err := client.CoreV1().ConfigMaps(names.Namespace).Get(t.Context(), names.TrustBundleConfigMap, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return cm
}

func TestOpenSharesOneRoot(t *testing.T) {
	client := installed()
	const replicas = 8
	roots := make([][]byte, replicas)
	var all sync.WaitGroup
	for i := range replicas {
		all.Go(func() {
			a, err := Open(t.Context(), Options{Client: client, TrustDomain: td, Log: quiet()})
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = a.RootsPEM()
		})
	}
	all.Wait()
	for i := range roots {
		if len(roots[i]) == 0 || !bytes.Equal(roots[i], roots[0]) {
			t.Errorf("replica %d has another root than replica 0", i)
		}
	}
	if got := bundle(t, client).Data[names.TrustBundleKey]; got != string(roots[0]) {
		t.Errorf("trust bundle is %q", got)
	}
	root := open(t, client).Roots()[0]
	if root.Subject.CommonName != "Hauberk root cluster.local" || root.URIs[0].String() != "spiffe://cluster.local" ||
		time.Until(root.NotAfter) < 9*365*24*time.Hour {
		t.Errorf("root is %s, %v, until %s", root.Subject, root.URIs, root.NotAfter)
	}
}

func TestOpenRefusesSecret(t *testing.T) {
	make := func(t *testing.T, change func(*corev1.Secret)) error {
		secret, err := newRootSecret(names.Namespace, td, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		change(secret)
		_, err = Open(t.Context(), Options{Client: fake.NewClientset(secret), TrustDomain: td, Log: quiet()})
		return err
	}
	other := func(t *testing.T, td spiffeid.TrustDomain, now time.Time) *corev1.Secret {
		secret, err := newRootSecret(names.Namespace, td, now)
		if err != nil {
			t.Fatal(err)
		}
		return secret
	}
	tests := map[string]struct {
		change func(*corev1.Secret)
		want   string
	}{
		"no key":      {func(s *corev1.Secret) { delete(s.Data, "tls.key") }, "no PEM key"},
		"another key": {func(s *corev1.Secret) { s.Data["tls.key"] = other(t, td, time.Now()).Data["tls.key"] }, "does not belong"},
		"two":         {func(s *corev1.Secret) { s.Data["tls.crt"] = append(s.Data["tls.crt"], s.Data["tls.crt"]...) }, "more than one"},
		"another trust domain": {func(s *corev1.Secret) {
			s.Data = other(t, spiffeid.RequireTrustDomainFromString("abroad.example"), time.Now()).Data
		}, "not of trust domain"},
		"expired": {func(s *corev1.Secret) { s.Data = other(t, td, time.Now().Add(-rootLife-time.Hour)).Data }, "expired"},
		"a leaf": {func(s *corev1.Secret) {
			a := open(t, installed())
			svid, _ := a.SelfSource().Current()
			chain, key, err := svid.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			s.Data["tls.crt"], s.Data["tls.key"] = chain, key
		}, "no CA"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := make(t, test.change)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "restore it") {
				t.Errorf("got %v, want %q and a mend", err, test.want)
			}
		})
	}
}

func TestAuditRepairsBundle(t *testing.T) {
	client := installed()
	a := open(t, client)
	cm := bundle(t, client)
	cm.Data = map[string]string{names.TrustBundleKey: "drifted", "other": "kept"}
	if _, err := client.CoreV1().ConfigMaps(names.Namespace).Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := a.audit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := bundle(t, client).Data; got[names.TrustBundleKey] != string(a.RootsPEM()) || got["other"] != "kept" {
		t.Errorf("after repair: %v", got)
	}
	if err := client.CoreV1().ConfigMaps(names.Namespace).Delete(t.Context(), names.TrustBundleConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := a.audit(t.Context()); err != nil || bundle(t, client).Data[names.TrustBundleKey] != string(a.RootsPEM()) {
		t.Errorf("a deleted bundle is not made again: %v", err)
	}
	// A replaced root is not fought over.
	secret, err := newRootSecret(names.Namespace, td, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	present, err := client.CoreV1().Secrets(names.Namespace).Get(t.Context(), names.CASecret, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	present.Data = secret.Data
	if _, err := client.CoreV1().Secrets(names.Namespace).Update(t.Context(), present, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := a.audit(t.Context()); err == nil || !strings.Contains(err.Error(), "another root") {
		t.Errorf("got %v, want an error about another root", err)
	}
}

func TestSign(t *testing.T) {
	a := open(t, installed())
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.WorkloadID(td, "bank", "summary")
	if err != nil {
		t.Fatal(err)
	}
	peer := identity.Peer{ID: id, PodUID: podUID}
	chain, err := a.Sign(peer, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if got, err := a.SelfSource().VerifyPeer(chain, usage); err != nil || got != peer {
			t.Errorf("verified as %v (%v), want %v", got, err, peer)
		}
	}
	leaf := chain[0]
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life != DefaultTTL+DefaultBackdate {
		t.Errorf("life of %s", life)
	}
	if leaf.SerialNumber.Sign() <= 0 {
		t.Errorf("serial %s", leaf.SerialNumber)
	}
	self, err := a.SelfSource().GetX509SVID()
	if err != nil || self.ID != identity.ControlID(td) {
		t.Errorf("own SVID %v: %v", self, err)
	}
	abroad, err := identity.WorkloadID(spiffeid.RequireTrustDomainFromString("abroad.example"), "bank", "summary")
	if err != nil {
		t.Fatal(err)
	}
	for name, peer := range map[string]identity.Peer{
		"nobody": {}, "another trust domain": {ID: abroad}, "a bad pod": {ID: id, PodUID: "a.b"}, "a bad node": {ID: id, Node: "A"},
		"the trust domain itself": {ID: td.ID()},
	} {
		if _, err := a.Sign(peer, key.Public()); err == nil {
			t.Errorf("an SVID is signed for %s", name)
		}
	}
}

func TestSignNeverOutlivesRoot(t *testing.T) {
	secret, err := newRootSecret(names.Namespace, td, time.Now().Add(-rootLife+time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	a := open(t, fake.NewClientset(secret))
	if got, root := a.SelfSource().Expiry(), a.Roots()[0].NotAfter; got.After(root) {
		t.Errorf("SVID until %s, root until %s", got, root)
	}
}

func request(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "admin"}, DNSNames: []string{"admin.pod.hauberk.internal"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestRequestKey(t *testing.T) {
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GODEBUG", "rsa1024min=0")
	rsa1024, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	tampered := request(t, p256)
	tampered[len(tampered)-1] ^= 1
	tests := map[string]struct {
		der  []byte
		want string
	}{
		"P-256": {request(t, p256), ""}, "P-384": {request(t, p384), ""}, "Ed25519": {request(t, ed), ""}, "RSA 2048": {request(t, rsa2048), ""},
		"P-521": {request(t, p521), "another curve"}, "RSA 1024": {request(t, rsa1024), "1024 bits"},
		"empty": {nil, "empty"}, "garbage": {[]byte("garbage"), "PKCS #10"}, "long": {make([]byte, maxRequest+1), "at most"},
		"not its own signature": {tampered, "not signed by its own key"}, "trailing bytes": {append(request(t, p256), 0), "PKCS #10"},
	}
	for name, test := range tests {
		key, err := requestKey(test.der)
		if test.want == "" && (err != nil || key == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || key != nil) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}

// tokens is a TokenReviewer that knows these tokens.
type tokens map[string]authenticationv1.TokenReviewStatus

func (r tokens) Review(_ context.Context, token string) (authenticationv1.TokenReviewStatus, error) {
	if token == "api.is.away" {
		return authenticationv1.TokenReviewStatus{}, errors.New("connection refused to secret-address")
	}
	return r[token], nil
}

func podToken(user string, extra map[string]string) authenticationv1.TokenReviewStatus {
	s := authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{names.TokenAudience}}
	s.User.Username = user
	s.User.Extra = map[string]authenticationv1.ExtraValue{}
	for key, value := range extra {
		s.User.Extra["authentication.kubernetes.io/"+key] = authenticationv1.ExtraValue{value}
	}
	return s
}

func testTokens() tokens {
	bound := map[string]string{"pod-name": "p", "pod-uid": podUID, "node-name": "node-1"}
	wrongAudience := podToken("system:serviceaccount:bank:summary", bound)
	wrongAudience.Audiences = []string{"https://kubernetes.default.svc"}
	noAudience := podToken("system:serviceaccount:bank:summary", bound)
	noAudience.Audiences = nil
	unauthenticated := podToken("system:serviceaccount:bank:summary", bound)
	unauthenticated.Authenticated = false
	twoPods := podToken("system:serviceaccount:bank:summary", bound)
	twoPods.User.Extra[extraPodUID] = []string{podUID, "other"}
	return tokens{
		"good.pod.t":   podToken("system:serviceaccount:bank:summary", bound),
		"good.node.t":  podToken("system:serviceaccount:hauberk-system:hauberk-node", bound),
		"old.node.t":   podToken("system:serviceaccount:hauberk-system:hauberk-node", map[string]string{"pod-name": "p", "pod-uid": podUID}),
		"aud.wrong.t":  wrongAudience,
		"aud.none.t":   noAudience,
		"not.authed.t": unauthenticated,
		"no.pod.t":     podToken("system:serviceaccount:bank:summary", nil),
		"no.uid.t":     podToken("system:serviceaccount:bank:summary", map[string]string{"pod-name": "p"}),
		"two.pods.t":   twoPods,
		"a.user.t":     podToken("admin", bound),
		"a.colon.t":    podToken("system:serviceaccount:bank:a:b", bound),
		"a.bad-uid.t":  podToken("system:serviceaccount:bank:summary", map[string]string{"pod-name": "p", "pod-uid": "A.B"}),
		// Somebody else's namespace with the node agent's name is no node agent.
		"fake.node.t": podToken("system:serviceaccount:bank:hauberk-node", bound),
	}
}

// serve serves a CA over TLS on loopback.
func serve(t *testing.T, log *slog.Logger) (*Authority, string) {
	t.Helper()
	a := open(t, installed())
	server, err := NewServer(ServerOptions{Authority: a, Reviewer: testTokens(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(identity.ServerTLS(a.SelfSource(), identity.WithOptionalClient()))))
	hauberkv1.RegisterCertificateAuthorityServer(g, server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- g.Serve(listener) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a, listener.Addr().String()
}

func dial(t *testing.T, a *Authority, address string) hauberkv1.CertificateAuthorityClient {
	t.Helper()
	config := identity.ClientTLS(a.SelfSource(), identity.Expect{ID: identity.ControlID(td)})
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return hauberkv1.NewCertificateAuthorityClient(conn)
}

func TestServerSign(t *testing.T) {
	var logged lockedBuffer
	a, address := serve(t, slog.New(slog.NewTextHandler(&logged, nil)))
	client := dial(t, a, address)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := request(t, key)
	tests := []struct {
		name   string
		header []string
		csr    []byte
		code   codes.Code
		want   identity.Peer
	}{
		{name: "pod", header: []string{"Bearer good.pod.t"}, want: identity.Peer{ID: spiffeid.RequireFromString("spiffe://cluster.local/ns/bank/sa/summary"), PodUID: podUID}},
		{name: "node agent", header: []string{"bearer good.node.t"}, want: identity.Peer{ID: identity.NodeID(td), PodUID: podUID, Node: "node-1"}},
		{name: "namesake of the node agent", header: []string{"Bearer fake.node.t"}, want: identity.Peer{ID: spiffeid.RequireFromString("spiffe://cluster.local/ns/bank/sa/hauberk-node"), PodUID: podUID}},
		{name: "node agent without node", header: []string{"Bearer old.node.t"}, code: codes.PermissionDenied},
		{name: "no token", code: codes.Unauthenticated},
		{name: "two tokens", header: []string{"Bearer good.pod.t", "Bearer good.node.t"}, code: codes.Unauthenticated},
		{name: "basic", header: []string{"Basic good.pod.t"}, code: codes.Unauthenticated},
		{name: "no scheme", header: []string{"good.pod.t"}, code: codes.Unauthenticated},
		{name: "no JWT", header: []string{"Bearer garbage"}, code: codes.Unauthenticated},
		{name: "long token", header: []string{"Bearer a." + strings.Repeat("a", maxToken) + ".a"}, code: codes.Unauthenticated},
		{name: "unknown token", header: []string{"Bearer un.known.t"}, code: codes.Unauthenticated},
		{name: "wrong audience", header: []string{"Bearer aud.wrong.t"}, code: codes.Unauthenticated},
		{name: "no audience", header: []string{"Bearer aud.none.t"}, code: codes.Unauthenticated},
		{name: "not authenticated", header: []string{"Bearer not.authed.t"}, code: codes.Unauthenticated},
		{name: "bound to no pod", header: []string{"Bearer no.pod.t"}, code: codes.PermissionDenied},
		{name: "no pod uid", header: []string{"Bearer no.uid.t"}, code: codes.PermissionDenied},
		{name: "two pods", header: []string{"Bearer two.pods.t"}, code: codes.PermissionDenied},
		{name: "bad pod uid", header: []string{"Bearer a.bad-uid.t"}, code: codes.PermissionDenied},
		{name: "a user", header: []string{"Bearer a.user.t"}, code: codes.PermissionDenied},
		{name: "three parts", header: []string{"Bearer a.colon.t"}, code: codes.PermissionDenied},
		{name: "bad request", header: []string{"Bearer good.pod.t"}, csr: []byte("garbage"), code: codes.InvalidArgument},
		{name: "API server away", header: []string{"Bearer api.is.away"}, code: codes.Unavailable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.csr == nil {
				test.csr = good
			}
			ctx := t.Context()
			for _, value := range test.header {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", value)
			}
			response, err := client.Sign(ctx, &hauberkv1.SignRequest{Csr: test.csr})
			if got := status.Code(err); got != test.code {
				t.Fatalf("got %v (%v), want %v", got, err, test.code)
			}
			if err != nil {
				if strings.Contains(err.Error(), "secret-address") {
					t.Errorf("the error tells of the inside: %v", err)
				}
				return
			}
			var chain []*x509.Certificate
			for _, der := range response.GetChain() {
				cert, err := x509.ParseCertificate(der)
				if err != nil {
					t.Fatal(err)
				}
				chain = append(chain, cert)
			}
			if got, err := a.SelfSource().VerifyPeer(chain, x509.ExtKeyUsageClientAuth); err != nil || got != test.want {
				t.Errorf("the certificate is of %v (%v), want %v", got, err, test.want)
			}
			if response.GetTrustDomain() != "cluster.local" || len(response.GetRoots()) != 1 {
				t.Errorf("trust domain %q, %d roots", response.GetTrustDomain(), len(response.GetRoots()))
			}
		})
	}
	for token := range testTokens() {
		if strings.Contains(logged.String(), token) {
			t.Errorf("token %s is in the log", token)
		}
	}
	if !strings.Contains(logged.String(), "certificate denied") {
		t.Error("denials are not logged")
	}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// The renewer of internal/identity against this server: the token file appears
// late and is read again.
func TestRenewerGetsSVID(t *testing.T) {
	a, address := serve(t, quiet())
	file := filepath.Join(t.TempDir(), "token")
	failed := make(chan error, 1)
	r, err := identity.NewRenewer(identity.RenewerOptions{
		ControlAddress: address, TokenFile: file, TrustDomain: td, InitialRoots: a.Roots(), Log: quiet(),
		MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond,
		OnRenewal: func(r identity.Renewal) {
			select {
			case failed <- r.Err:
			default:
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	if err := <-failed; !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a token: %v", err)
	}
	if err := os.WriteFile(file, []byte("good.pod.t\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.Source().Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("no SVID in 20 s")
	}
	svid, err := r.Source().GetX509SVID()
	if err != nil || svid.ID.String() != "spiffe://cluster.local/ns/bank/sa/summary" {
		t.Errorf("got %v, %v", svid, err)
	}
}

func TestLimiter(t *testing.T) {
	l := newLimiter()
	now := time.Now()
	one, two := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for i := range peerBurst {
		if !l.allow(one, now) {
			t.Fatalf("request %d of the burst is refused", i)
		}
	}
	if l.allow(one, now) || l.allow(netip.MustParseAddr("::ffff:10.0.0.1"), now) {
		t.Error("more than the burst is allowed")
	}
	if !l.allow(two, now) || !l.allow(one, now.Add(time.Second)) {
		t.Error("a neighbour, or the same address later, is refused")
	}
	addr := netip.MustParseAddr("2001:db8::1")
	for range 2 * maxPeers {
		l.allow(addr, now)
		addr = addr.Next()
	}
	if len(l.peers) > maxPeers {
		t.Errorf("%d addresses are remembered", len(l.peers))
	}
	if !l.allow(addr, now.Add(2*peerIdle)) || len(l.peers) > 1 {
		t.Errorf("%d addresses are remembered after they were idle", len(l.peers))
	}
}

func FuzzSign(f *testing.F) {
	a := open(f, installed())
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("Bearer good.pod.t", request(f, key))
	f.Add("Bearer un.known.t", request(f, key))
	f.Add("", []byte("garbage"))
	f.Fuzz(func(t *testing.T, header string, csr []byte) {
		server, err := NewServer(ServerOptions{Authority: a, Reviewer: testTokens(), Log: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", header))
		response, err := server.Sign(ctx, &hauberkv1.SignRequest{Csr: csr})
		if err != nil {
			if status.Code(err) == codes.Unknown {
				t.Errorf("error without a status: %v", err)
			}
			return
		}
		leaf, err := x509.ParseCertificate(response.GetChain()[0])
		if err != nil {
			t.Fatal(err)
		}
		want, err := callerOf(testTokens()[header[len("Bearer "):]], td)
		if err != nil {
			t.Fatalf("a certificate for a token that gets none: %v", err)
		}
		if got, err := identity.PeerFromCertificate(leaf); err != nil || got != want {
			t.Errorf("certificate of %v (%v) for the token of %v", got, err, want)
		}
	})
}
