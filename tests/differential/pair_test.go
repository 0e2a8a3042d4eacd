package differential

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/encoding/protojson"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/identity/identitytest"
)

const (
	clientUID = "11111111-1111-1111-1111-111111111111"
	serverUID = "22222222-2222-2222-2222-222222222222"
	clientID  = "spiffe://cluster.local/ns/bank/sa/client"
	serverID  = "spiffe://cluster.local/ns/bank/sa/server"
	service   = "10.96.0.1:80"
)

// binary is the sidecar, built by TestMain; why it is missing otherwise.
var binary, missing string

// TestMain builds the sidecar and finds out whether the back ends are there.
func TestMain(m *testing.M) { os.Exit(prepare(m)) }

func prepare(m *testing.M) int {
	for _, program := range []string{"node", "/usr/bin/gunicorn", "/usr/bin/python3", "/usr/sbin/nginx", "/usr/bin/slowhttptest"} {
		if _, err := exec.LookPath(program); err != nil {
			missing += " " + program
		}
	}
	dir, err := os.MkdirTemp("", "hauberk-differential-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "hauberk-proxy")
	build := exec.Command("go", "build", "-o", binary, "../../cmd/hauberk-proxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the sidecar: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// needs skips where the back ends can't be: only for a user who can't install
// them is that no failure.
func needs(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("real back ends behind real sidecars are left out of -short; make test-packet has them")
	}
	if missing == "" {
		return
	}
	if os.Geteuid() == 0 {
		t.Fatalf("missing:%s (mend: make tools-packet)", missing)
	}
	t.Skipf("left out: what the sidecar admits is not held against real back ends, which root must install (make tools-packet):%s", missing)
}

// admitted is a line of the server's sidecar's access log.
type admitted struct {
	Method   string `json:"method"`
	Path     string `json:"path"`
	Host     string `json:"host"`
	Status   int    `json:"status"`
	Received int    `json:"received_bytes"`
	Flag     string `json:"flag"`
	Verdict  string `json:"verdict"`
	Error    string `json:"error"`
}

// pair is two sidecars, as processes, before one back end.
type pair struct {
	backend backend
	dial    string // the client's sidecar
	inbound string // the server's
	app     netip.AddrPort
	sees    *journal[seen]
	log     *journal[admitted]
	client  *exec.Cmd
	server  *exec.Cmd
	fences  int
	// The loopback faces of the two.
	clientAdmin, serverAdmin netip.AddrPort
}

type options struct {
	rules    []*hauberkv1.Rule
	protocol hauberkv1.AppProtocol
}

// requests is a rule about requests of anybody.
func requests(methods []string, prefixes ...string) *hauberkv1.Rule {
	m := &hauberkv1.HTTPMatch{Methods: methods}
	for _, p := range prefixes {
		m.Paths = append(m.Paths, &hauberkv1.PathMatch{Type: hauberkv1.PathMatch_TYPE_PREFIX, Value: p})
	}
	return &hauberkv1.Rule{Name: strings.Join(methods, "-"), Action: hauberkv1.Action_ACTION_ALLOW, AnyPeer: true, Http: []*hauberkv1.HTTPMatch{m}}
}

func startPair(t *testing.T, b backend, o options) *pair {
	t.Helper()
	p := &pair{backend: b, app: freePort(t), sees: newJournal[seen](), log: newJournal[admitted]()}
	b.start(t, p.app, p.sees)
	listening(t, p.app)

	dir := t.TempDir()
	authority := identitytest.NewAuthority(t, "cluster.local")
	write := func(name string, b []byte) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	bundle := write("ca.crt", authority.RootsPEM())
	in, out := freePort(t), freePort(t)
	workload := func(uid, name, id string) *hauberkv1.Resource {
		w := &hauberkv1.Workload{Uid: uid, Namespace: "bank", Name: name + "-0", ServiceAccount: name, Labels: map[string]string{"app": name},
			Meshed: true, SpiffeId: id, WorkloadName: name, WorkloadKind: "Deployment", PolicySet: name,
			MtlsMode: hauberkv1.MTLSMode_MTLS_MODE_STRICT, Addresses: []string{"127.0.0.1"}}
		if name == "server" && o.protocol != 0 {
			w.PortProtocols = map[uint32]hauberkv1.AppProtocol{uint32(p.app.Port()): o.protocol}
		}
		return &hauberkv1.Resource{Name: "uid/" + uid, Version: "1", Body: &hauberkv1.Resource_Workload{Workload: w}}
	}
	set := func(name string, ingress []*hauberkv1.Tier) *hauberkv1.Resource {
		return &hauberkv1.Resource{Name: name, Version: "1", Body: &hauberkv1.Resource_PolicySet{PolicySet: &hauberkv1.PolicySet{Id: name,
			Ingress: ingress, DefaultAction: hauberkv1.Action_ACTION_ALLOW}}}
	}
	mesh := &hauberkv1.Resource{Name: "mesh", Version: "1", Body: &hauberkv1.Resource_Mesh{Mesh: &hauberkv1.Mesh{TrustDomain: "cluster.local",
		Telemetry: &hauberkv1.Telemetry{AccessLog: true}}}}
	destination := &hauberkv1.Resource{Name: service, Version: "1", Body: &hauberkv1.Resource_Destination{Destination: &hauberkv1.Destination{
		Kind: "Service", Namespace: "bank", Name: "server", Port: 80, Protocol: o.protocol, Endpoints: []*hauberkv1.DestinationEndpoint{{
			Address: in.Addr().String(), Port: uint32(in.Port()), PodUid: serverUID, SpiffeId: serverID, Ready: true, WorkloadName: "server",
			Namespace: "bank", PodName: "server-0"}}}}}
	ingress := []*hauberkv1.Tier{{Name: "default", Order: 1e6, DefaultAction: hauberkv1.Action_ACTION_DENY, Policies: []*hauberkv1.Policy{
		{Kind: "MeshPolicy", Namespace: "bank", Name: "api", Order: 10, Rules: o.rules}}}}

	p.clientAdmin, p.serverAdmin = freePort(t), freePort(t)
	config := func(name, uid, listeners string, admin netip.AddrPort, resources ...*hauberkv1.Resource) string {
		t.Helper()
		peer := identity.Peer{ID: spiffeid.RequireFromString("spiffe://cluster.local/ns/bank/sa/" + name), PodUID: uid}
		svid := authority.SVID(t, peer, time.Hour)
		key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		crt := write(name+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: svid.Certificates[0].Raw}))
		keyFile := write(name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
		var w strings.Builder
		fmt.Fprintf(&w, "podUID: %s\nlogLevel: warn\ndrainSeconds: 0\nadmin: '%s'\nlisteners: %s\n", uid, admin, listeners)
		fmt.Fprintf(&w, "identity: {certificateFile: %s, keyFile: %s, bundleFile: %s}\nresources:\n", crt, keyFile, bundle)
		for _, r := range resources {
			j, err := protojson.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&w, "- %s\n", j)
		}
		return write(name+".yaml", []byte(w.String()))
	}
	client, server := workload(clientUID, "client", clientID), workload(serverUID, "server", serverID)
	inFile := config("server", serverUID, fmt.Sprintf("{inbound: [{address: '%s', destination: '%s'}]}", in, p.app), p.serverAdmin,
		mesh, server, client, set("server", ingress))
	outFile := config("client", clientUID, fmt.Sprintf("{outbound: [{address: '%s', destination: '%s'}]}", out, service), p.clientAdmin,
		mesh, client, server, set("client", nil), destination)
	access := func(b []byte) bool { return bytes.Contains(b, []byte(`"log":"access"`)) }
	p.server = run(t, nil, func(r io.Reader) { read(r, p.log, access) }, binary, "--config", inFile)
	p.client = run(t, nil, func(io.Reader) {}, binary, "--config", outFile)
	for _, at := range []netip.AddrPort{in, out, p.clientAdmin, p.serverAdmin} {
		listening(t, at)
	}
	p.dial, p.inbound = out.String(), in.String()
	return p
}

// quiet waits until both sidecars carry nothing: the client's has no connection,
// and the server's none but those that the client's keeps for later.
func (p *pair) quiet(t fatal) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		var client, server struct{ Connections int }
		var upstreams []struct{ Idle int }
		ask(t, p.clientAdmin, "/status", &client)
		ask(t, p.clientAdmin, "/pools", &upstreams)
		ask(t, p.serverAdmin, "/status", &server)
		idle := 0
		for _, u := range upstreams {
			idle += u.Idle
		}
		if client.Connections == 0 && server.Connections <= idle {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after 20 s the client's sidecar still carries %d connections, the server's %d of which %d are idle",
				client.Connections, server.Connections, idle)
		}
	}
}

func ask(t fatal, admin netip.AddrPort, path string, into any) {
	t.Helper()
	r, err := http.Get("http://" + admin.String() + path)
	if err != nil {
		t.Fatalf("ask the sidecar: %v", err)
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		t.Fatalf("ask the sidecar for %s: %v", path, err)
	}
}
