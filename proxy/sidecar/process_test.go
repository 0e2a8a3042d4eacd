package sidecar

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/identity/identitytest"
	"github.com/hauberk-mesh/hauberk/proxy/admin"
)

// control is a control plane for one pod: it signs for a known token and
// answers subscriptions from a list.
type control struct {
	hauberkv1.UnimplementedCertificateAuthorityServer
	hauberkv1.UnimplementedDiscoveryServer
	t         *testing.T
	authority *identitytest.Authority
	resources []*hauberkv1.Resource
	nacks     atomic.Int64
}

func (c *control) Sign(ctx context.Context, r *hauberkv1.SignRequest) (*hauberkv1.SignResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer the-token" {
		return nil, status.Errorf(codes.Unauthenticated, "authorization %q", got)
	}
	csr, err := x509.ParseCertificateRequest(r.GetCsr())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	peer := identity.Peer{ID: spiffeid.RequireFromString(clientID), PodUID: clientUID}
	cert := c.authority.Sign(c.t, c.authority.Template(c.t, peer), csr.PublicKey)
	return &hauberkv1.SignResponse{Chain: [][]byte{cert.Raw}, Roots: [][]byte{c.authority.Root.Raw}, TrustDomain: "cluster.local"}, nil
}

func (c *control) Stream(s hauberkv1.Discovery_StreamServer) error {
	nonce := 0
	for {
		r, err := s.Recv()
		if err != nil {
			return nil
		}
		if r.GetError() != "" {
			c.nacks.Add(1)
			c.t.Errorf("rejected: %s", r.GetError())
		}
		for _, name := range r.GetSubscribe() {
			nonce++
			out := &hauberkv1.DiscoveryResponse{Type: r.GetType(), Nonce: fmt.Sprint(nonce), Complete: name == "*"}
			for _, res := range c.resources {
				if typeOf(res) == r.GetType() && (name == "*" || name == res.GetName()) {
					out.Resources = append(out.Resources, res)
				}
			}
			if name != "*" && len(out.Resources) == 0 {
				out.Removed = []string{name}
			}
			if err := s.Send(out); err != nil {
				return err
			}
		}
	}
}

func TestProcessWithControlPlane(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces: the sidecar's process is not tested")
	}
	binary := filepath.Join(t.TempDir(), "hauberk-proxy")
	build := exec.Command("go", "build", "-o", binary, "../../cmd/hauberk-proxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	client, server := twoPods(t)
	command(t, "ip", "netns", "exec", server.name, "iptables", "-w", "-t", "nat", "-F") // a host outside of the mesh
	authority := identitytest.NewAuthority(t, "")
	s := setup{}
	own := workloadResource(clientUID, "client", clientID, map[string]string{"app": "client"}, 0, &s)
	own.GetWorkload().Addresses = []string{client.v4, client.v6}
	c := &control{t: t, authority: authority, resources: []*hauberkv1.Resource{meshResource(&s), own, setResource("client-policy", nil, nil)}}

	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("the-token"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Dir(binary), filepath.Dir(filepath.Dir(binary)), filepath.Dir(token)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	log := &safeBuffer{}
	process := exec.Command("ip", "netns", "exec", client.name, "setpriv", "--reuid", "15015", "--regid", "15015", "--clear-groups", binary)
	process.Env = append(os.Environ(), "HAUBERK_CONTROL_ADDRESS="+client.v4+":15012", "HAUBERK_TRUST_BUNDLE="+string(authority.RootsPEM()),
		"HAUBERK_TOKEN_FILE="+token, "HAUBERK_POD_UID="+clientUID, "HAUBERK_POD_NAME=client-0", "HAUBERK_POD_NAMESPACE=bank",
		"HAUBERK_POD_IPS="+client.v4+","+client.v6, "HAUBERK_DRAIN_SECONDS=3", "HAUBERK_LOG_LEVEL=debug",
		`HAUBERK_PROBES={"app/readiness":{"http":{"path":"/ready","port":8080,"scheme":"HTTP","headers":[{"name":"X","value":"y"}]},"timeoutSeconds":1},"app/liveness":{"tcp":{"port":8080},"timeoutSeconds":1},"app/startup":{"tcp":{"port":9},"timeoutSeconds":1}}`)
	process.Stdout, process.Stderr = log, log
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if process.ProcessState == nil {
			_ = process.Process.Kill()
			_ = process.Wait()
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	web := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
		return client.dial(t, address)
	}}}
	fetch := func(url string) (int, string) {
		r, err := web.Get(url)
		if err != nil {
			return 0, err.Error()
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		return r.StatusCode, string(b)
	}
	until := func(what, url string, ok func(int, string) bool) {
		t.Helper()
		var status int
		var text string
		for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if status, text = fetch(url); ok(status, text) {
				return
			}
		}
		t.Fatalf("%s: last %d %q", what, status, text)
	}
	const health = "http://127.0.0.1:15021"
	until("not ready without a control plane", health+"/readyz", func(s int, b string) bool { return s == 503 && strings.Contains(b, "identity") })

	// Closed while it starts: nobody listens where traffic is redirected to.
	outside := server.listen(t, ":7777")
	echoed := make(chan struct{})
	go func() {
		defer close(echoed)
		for {
			c, err := outside.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello")
			c.Close()
		}
	}()
	t.Cleanup(func() { outside.Close(); <-echoed })
	if conn, err := client.dial(t, server.v4+":7777"); err == nil {
		if b, _ := io.ReadAll(conn); len(b) > 0 {
			t.Errorf("traffic passed before the sidecar was ready: %q", b)
		}
	}

	listener := client.listen(t, client.v4+":15012")
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(identity.ServerTLS(authority.Control(t), identity.WithALPN("h2"), identity.WithOptionalClient()))))
	hauberkv1.RegisterCertificateAuthorityServer(g, c)
	hauberkv1.RegisterDiscoveryServer(g, c)
	served := make(chan struct{})
	go func() { defer close(served); _ = g.Serve(listener) }()
	stop := func() { g.Stop(); <-served }
	t.Cleanup(stop)
	until("ready", health+"/readyz", func(s int, _ string) bool { return s == 200 })

	conn, err := client.dial(t, server.v4+":7777")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
		t.Errorf("a destination outside of the mesh: %q, %v", b, err)
	}
	_, text := fetch("http://127.0.0.1:15000/")
	var st admin.Status
	if err := json.Unmarshal([]byte(text), &st); err != nil || st.Identity != clientID || !st.Connected || st.Pod != "bank/client-0" || len(st.NotReady) > 0 {
		t.Errorf("status %+v, %v", st, err)
	}
	if _, text := fetch("http://127.0.0.1:15020/metrics"); !strings.Contains(text, "hauberk_control_connected 1") {
		t.Errorf("metrics:\n%.500s", text)
	}

	app := client.listen(t, ":8080")
	appServer := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ready" || r.Header.Get("X") != "y" {
			w.WriteHeader(500)
		}
	})}
	appDone := make(chan struct{})
	go func() { defer close(appDone); _ = appServer.Serve(app) }()
	t.Cleanup(func() { appServer.Close(); <-appDone })
	for path, want := range map[string]int{"/probe/app/readiness": 200, "/probe/app/liveness": 200, "/probe/app/startup": 503, "/probe/app/none": 404} {
		if status, text := fetch(health + path); status != want {
			t.Errorf("%s: %d %q, want %d", path, status, text, want)
		}
	}

	// The control plane goes; what is known stays.
	stop()
	if conn, err = client.dial(t, server.v4+":7777"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
		t.Errorf("without the control plane: %q, %v", b, err)
	}
	if status, _ := fetch(health + "/readyz"); status != 200 {
		t.Errorf("readiness without the control plane: %d", status)
	}
	if status, _ := fetch(health + "/drain"); status != 404 {
		t.Errorf("draining on the health port: %d, want 404: anybody who reaches the pod could ask", status)
	}
	command(t, "ip", "netns", "exec", client.name, binary, "drain")
	if err := process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := process.Wait(); err != nil {
		t.Errorf("ended with %v", err)
	}
	if n := c.nacks.Load(); n != 0 {
		t.Errorf("%d updates were rejected", n)
	}
}
