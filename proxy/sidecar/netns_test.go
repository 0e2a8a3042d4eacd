package sidecar

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"google.golang.org/protobuf/encoding/protojson"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/identity/identitytest"
)

// pod is a network namespace with the redirection that a pod gets and the real
// binary as its sidecar.
type pod struct {
	name    string
	v4, v6  string
	process *exec.Cmd
	log     *safeBuffer
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// inside runs f on a thread that is in the pod's network namespace.
func (p *pod) inside(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromName(p.name)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func (p *pod) listen(t *testing.T, address string) (l net.Listener) {
	t.Helper()
	var err error
	p.inside(t, func() { l, err = net.Listen("tcp", address) })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (p *pod) dial(t *testing.T, address string) (c net.Conn, err error) {
	t.Helper()
	p.inside(t, func() { c, err = net.DialTimeout("tcp", address, 5*time.Second) })
	if err == nil {
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return c, err
}

// capture is the redirection of a pod, as the node agent programs it.
func (p *pod) capture(t *testing.T) {
	t.Helper()
	for _, iptables := range []string{"iptables", "ip6tables"} {
		for _, rule := range []string{
			"-A OUTPUT -p tcp -o lo -j RETURN",
			"-A OUTPUT -p tcp -m owner --uid-owner 15015 -j RETURN",
			"-A OUTPUT -p tcp -j REDIRECT --to-ports 15001",
			"-A PREROUTING -p tcp -m multiport --dports 15020,15021 -j RETURN",
			"-A PREROUTING -p tcp -j REDIRECT --to-ports 15006",
		} {
			command(t, "ip", append([]string{"netns", "exec", p.name, iptables, "-w", "-t", "nat"}, strings.Fields(rule)...)...)
		}
	}
}

func (p *pod) start(t *testing.T, binary string, source *identitytest.Authority, sa, uid string, resources []*hauberkv1.Resource) {
	t.Helper()
	dir := t.TempDir()
	current, ok := source.Workload(t, "bank", sa, uid).Current()
	if !ok {
		t.Fatal("no SVID")
	}
	cert, key, err := current.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "podUID: %s\nlogLevel: debug\ndrainSeconds: 5\nhealth: ':15021'\nmetrics: ':15020'\nadmin: '127.0.0.1:15000'\n", uid)
	fmt.Fprintf(&b, "listeners: {capture: true}\nidentity: {certificateFile: %[1]s/cert, keyFile: %[1]s/key, bundleFile: %[1]s/bundle}\nresources:\n", dir)
	for _, r := range resources {
		j, err := protojson.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "- %s\n", j)
	}
	for name, content := range map[string][]byte{"cert": cert, "key": key, "bundle": source.RootsPEM(), "config.yaml": []byte(b.String())} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.log = &safeBuffer{}
	p.process = exec.Command("ip", "netns", "exec", p.name, "setpriv", "--reuid", "15015", "--regid", "15015", "--clear-groups",
		"--no-new-privs", binary, "--config", filepath.Join(dir, "config.yaml"))
	p.process.Stdout, p.process.Stderr = p.log, p.log
	if err := p.process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.process.ProcessState == nil {
			_ = p.process.Process.Kill()
			_ = p.process.Wait()
		}
		if t.Failed() {
			t.Logf("%s:\n%s", p.name, p.log)
		}
	})
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if strings.Contains(p.log.String(), "sidecar is ready") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the sidecar does not become ready")
		}
	}
}

// twoPods is a client and a server pod, joined by a veth pair.
func twoPods(t *testing.T) (client, server *pod) {
	t.Helper()
	id := fmt.Sprintf("%d", os.Getpid()%100000)
	client = &pod{name: "hbx-c" + id, v4: "10.77.0.1", v6: "fd77::1"}
	server = &pod{name: "hbx-s" + id, v4: "10.77.0.2", v6: "fd77::2"}
	for _, p := range []*pod{client, server} {
		command(t, "ip", "netns", "add", p.name)
		t.Cleanup(func() { command(t, "ip", "netns", "del", p.name) })
	}
	command(t, "ip", "-n", client.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", server.name)
	for _, p := range []*pod{client, server} {
		for _, args := range []string{"link set lo up", "addr add " + p.v4 + "/24 dev eth0", "addr add " + p.v6 + "/64 dev eth0 nodad",
			"link set eth0 up", "route add default dev eth0", "-6 route add default dev eth0"} {
			command(t, "ip", append([]string{"-n", p.name}, strings.Fields(args)...)...)
		}
		p.capture(t)
	}
	return client, server
}

func TestCapturedByIptables(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces: capture by SO_ORIGINAL_DST is not tested")
	}
	binary := filepath.Join(t.TempDir(), "hauberk-proxy")
	build := exec.Command("go", "build", "-o", binary, "../../cmd/hauberk-proxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	client, server := twoPods(t)
	authority := identitytest.NewAuthority(t, "")
	s := setup{serverProto: http1, mtls: hauberkv1.MTLSMode_MTLS_MODE_STRICT}
	cw, sw := workloadResource(clientUID, "client", clientID, map[string]string{"app": "client"}, 0, &s),
		workloadResource(serverUID, "server", serverID, map[string]string{"app": "server"}, 8080, &s)
	cw.GetWorkload().Addresses, sw.GetWorkload().Addresses = []string{client.v4, client.v6}, []string{server.v4, server.v6}
	sw.GetWorkload().PortProtocols[2525] = tcp
	endpoint := func(address string, port uint32) []*hauberkv1.DestinationEndpoint {
		return []*hauberkv1.DestinationEndpoint{{Address: address, Port: port, PodUid: serverUID, SpiffeId: serverID, Ready: true, WorkloadName: "server", Namespace: "bank"}}
	}
	destination := func(name, kind, address string, port uint32, p hauberkv1.AppProtocol) *hauberkv1.Resource {
		return &hauberkv1.Resource{Name: name, Version: "1", Body: &hauberkv1.Resource_Destination{Destination: &hauberkv1.Destination{
			Kind: kind, Namespace: "bank", Name: "server", Port: 80, Protocol: p, Endpoints: endpoint(address, port)}}}
	}
	policy := tier(rule("read", allow, get([]string{"GET"}, "/ok")),
		&hauberkv1.Rule{Name: "smtp", Action: allow, AnyPeer: true, Ports: []*hauberkv1.PortMatch{{Protocol: 6, Port: 2525}}})
	server.start(t, binary, authority, "server", serverUID, []*hauberkv1.Resource{meshResource(&s), sw, cw, setResource("server-policy", policy, nil)})
	client.start(t, binary, authority, "client", clientUID, []*hauberkv1.Resource{meshResource(&s), cw, sw, setResource("client-policy", nil, nil),
		destination("10.96.0.1:80", "Service", server.v4, 8080, http1), destination("[fd96::1]:80", "Service", server.v6, 8080, 0),
		destination(server.v4+":2525", "Pod", server.v4, 2525, tcp)})

	web := server.listen(t, ":8080")
	app := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Header.Get("X-Forwarded-Client-Cert"), r.Header.Get("X-Forwarded-For"))
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = app.Serve(web) }()
	mail := server.listen(t, ":2525")
	mailed := make(chan struct{})
	go func() {
		defer close(mailed)
		for {
			c, err := mail.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "220 ready\r\n")
			c.Close()
		}
	}()
	t.Cleanup(func() { app.Close(); mail.Close(); <-served; <-mailed })

	for _, tc := range []struct{ address, method, path, from, want string }{
		{"10.96.0.1:80", "GET", "/ok", client.v4, "200"},
		{"10.96.0.1:80", "PUT", "/ok", client.v4, "403"},
		{"[fd96::1]:80", "GET", "/ok", client.v6, "200"},
		{"[fd96::1]:80", "GET", "/other", client.v6, "403"},
	} {
		c, err := client.dial(t, tc.address)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n", tc.method, tc.path)
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		status, text := body(t, r, err)
		if fmt.Sprint(status) != tc.want {
			t.Errorf("%s %s %s: %d %q, want %s", tc.method, tc.address, tc.path, status, text, tc.want)
		}
		if want := fmt.Sprintf("By=%s;URI=%s %s", serverID, clientID, tc.from); status == 200 && text != want {
			t.Errorf("the application saw %q, want %q", text, want)
		}
		if status == 403 && !strings.Contains(text, "MeshPolicy bank/api") {
			t.Errorf("refusal %q", text)
		}
	}
	c, err := client.dial(t, server.v4+":2525")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "220 ready\r\n" {
		t.Errorf("server-first: %q, %v", b, err)
	}
	c.Close()
	// Neither listener answers to its own address.
	for _, address := range []string{"127.0.0.1:15001", "127.0.0.1:15006", server.v4 + ":15001"} {
		c, err := server.dial(t, address)
		if err != nil {
			continue
		}
		if n, err := c.Read(make([]byte, 1)); err == nil || n > 0 {
			t.Errorf("%s answers: %d", address, n)
		}
	}
	// SIGTERM with nothing under way ends at once and without an error.
	start := time.Now()
	if err := client.process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := client.process.Wait(); err != nil {
		t.Errorf("the sidecar ended with %v", err)
	}
	if d := time.Since(start); d > 4*time.Second {
		t.Errorf("ending took %s", d)
	}
}
