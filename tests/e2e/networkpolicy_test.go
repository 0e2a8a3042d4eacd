package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// cell is one way from a client to the server.
type cell struct {
	from     string
	protocol string // tcp, http, udp, ping
	v6       bool
}

func (c cell) String() string {
	family := "IPv4"
	if c.v6 {
		family = "IPv6"
	}
	return c.from + " " + c.protocol + " " + family
}

func portOf(protocol string) uint16 {
	return map[string]uint16{"tcp": tcpPort, "http": httpPort, "udp": udpPort}[protocol]
}

// to is the server's address for a cell.
func (c cell) to(server *running) netip.AddrPort {
	a := server.v4
	if c.v6 {
		a = server.v6
	}
	return netip.AddrPortFrom(a, portOf(c.protocol))
}

// field is a server, and clients in two namespaces and on two nodes.
type field struct {
	*world
	t          *testing.T
	home, away *space
	server     *running
	clients    map[string]*running
	places     map[string]place
}

func newField(t *testing.T, w *world, hint string, meshed bool) *field {
	t.Helper()
	labels := map[string]string{}
	if meshed {
		labels["hauberk.dev/inject"] = "enabled"
	}
	f := &field{world: w, t: t, home: w.space(t, hint, labels), away: w.space(t, hint+"-away", labels), clients: map[string]*running{}, places: map[string]place{}}
	f.home.accounts("friend", "stranger")
	f.away.accounts("outsider")
	outsider := client("outsider", as("outsider"), on("node2"))
	must[*corev1.Pod](t)(f.away.create(t.Context(), outsider))
	here := f.home.run(server("target", on("node1")), client("friend", as("friend"), on("node1")), client("stranger", as("stranger"), on("node2")))
	there := must[*running](t)(f.away.ready(t.Context(), outsider.Name))
	f.server = here[0]
	for _, c := range []*running{here[1], here[2], there} {
		f.clients[c.Name] = c
		f.places[c.Name] = must[place](t)(c.place())
	}
	return f
}

// every is all cells.
func (f *field) every() []cell {
	var out []cell
	for _, from := range []string{"friend", "stranger", "outsider"} {
		for _, protocol := range []string{"tcp", "http", "udp", "ping"} {
			for _, v6 := range []bool{false, true} {
				out = append(out, cell{from, protocol, v6})
			}
		}
	}
	return out
}

// looks tries every cell once and tells what is not as wanted.
func (f *field) looks(ctx context.Context, open func(cell) bool) error {
	return each(f.every(), func(c cell) error {
		got, _, err := f.places[c.from].try(ctx, attempt{protocol: c.protocol, to: c.to(f.server)})
		if err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
		if want := open(c); got.open() != want {
			return fmt.Errorf("%s: %s, and open should be %v", c, got, want)
		}
		return nil
	})
}

// stays wants every cell as it should be, soon, and then still: what only passes
// while the change before is in force fails the second look.
func (f *field) stays(t *testing.T, open func(cell) bool) {
	t.Helper()
	within(t, 30*time.Second, "the traffic is as the policies say", func(ctx context.Context) error {
		return errors.Join(f.looks(ctx, open), f.looks(ctx, open))
	})
}

// agrees wants the answers of `hauberk policy can` for the cells of IPv4.
func (f *field) agrees(t *testing.T, open func(cell) bool) {
	t.Helper()
	check(t, each(f.every(), func(c cell) error {
		if c.v6 {
			return nil
		}
		args := []string{"policy", "can", f.clients[c.from].Namespace + "/" + c.from, f.home.name + "/target"}
		switch c.protocol {
		case "ping":
			args = append(args, "--protocol", "icmp")
		case "udp":
			args = append(args, "--protocol", "udp", "--port", fmt.Sprint(udpPort))
		default:
			args = append(args, "--port", fmt.Sprint(portOf(c.protocol)))
		}
		got, err := f.hauberk(t.Context(), args...)
		if err != nil {
			return err
		}
		want := 80
		if open(c) {
			want = 0
		}
		if got.Code != want {
			return fmt.Errorf("%s: hauberk %s: exit code %d, want %d\n%s%s", c, strings.Join(args, " "), got.Code, want, got.Out, got.Err)
		}
		return nil
	}))
}

const networkPolicy = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: case}
spec:
`

func TestNetworkPolicyHoldsInKernelAndSidecar(t *testing.T) {
	w := together(t)
	for name, meshed := range map[string]bool{"meshed": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newField(t, w, "np-"+name, meshed)
			friend := f.clients["friend"]
			all := func(cell) bool { return true }
			f.stays(t, all)
			for _, test := range []struct {
				name, spec string
				open       func(cell) bool
			}{
				{"default deny", `{podSelector: {}, policyTypes: [Ingress]}`, func(cell) bool { return false }},
				{"podSelector", `{podSelector: {matchLabels: {app: target}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}`,
					func(c cell) bool { return c.from == "friend" }},
				{"namespaceSelector", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ` + f.away.name + `}}}]}]}`,
					func(c cell) bool { return c.from == "outsider" }},
				{"namespaceSelector and podSelector", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ` + f.away.name + `}}, podSelector: {matchLabels: {app: friend}}}]}]}`,
					func(cell) bool { return false }},
				{"ipBlock with except", `{podSelector: {matchLabels: {app: target}}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [` + friend.v4.String() + `/32]}}]}]}`,
					func(c cell) bool { return !c.v6 && c.from != "friend" }},
				{"ipBlock of IPv6", `{podSelector: {matchLabels: {app: target}}, ingress: [{from: [{ipBlock: {cidr: "` + friend.v6.String() + `/128"}}]}]}`,
					func(c cell) bool { return c.v6 && c.from == "friend" }},
				{"named port", `{podSelector: {matchLabels: {app: target}}, ingress: [{ports: [{port: web}]}]}`,
					func(c cell) bool { return c.protocol == "http" }},
				{"endPort", `{podSelector: {matchLabels: {app: target}}, ingress: [{ports: [{port: 8080, endPort: 9000}]}]}`,
					func(c cell) bool { return c.protocol == "http" || c.protocol == "tcp" }},
				{"UDP", `{podSelector: {matchLabels: {app: target}}, ingress: [{ports: [{protocol: UDP, port: 9001}]}]}`,
					func(c cell) bool { return c.protocol == "udp" }},
				{"egress", `{podSelector: {matchLabels: {app: friend}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: target}}}], ports: [{port: 9000}]}]}`,
					func(c cell) bool { return c.from != "friend" || c.protocol == "tcp" }},
				{"default deny of egress", `{podSelector: {}, policyTypes: [Egress]}`,
					func(c cell) bool { return c.from == "outsider" }},
			} {
				t.Run(test.name, func(t *testing.T) {
					manifest := networkPolicy + "  " + test.spec
					check(t, f.apply(t.Context(), f.home.name, manifest))
					f.stays(t, test.open)
					f.agrees(t, func(c cell) bool { return test.open(c) })
					check(t, f.remove(t.Context(), f.home.name, manifest))
				})
			}
			f.stays(t, all)
		})
	}
}

func TestPolicyThatIsOlderThanThePodHoldsFromTheFirstPacket(t *testing.T) {
	w := together(t)
	s := w.meshed(t, "np-before")
	check(t, s.apply(t.Context(), s.name, networkPolicy+"  {podSelector: {matchLabels: {app: target}}, policyTypes: [Ingress]}"))
	for name, changes := range map[string][]change{"meshed": nil, "plain": {labelled("hauberk.dev/inject", "disabled")}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			made := s.run(client("from-"+name, on("node2")))
			from := must[place](t)(made[0].place())
			// The server is tried from the moment that it has an address, which is
			// before it is ready.
			target := server("target-"+name, append(changes, labelled("app", "target"), on("node1"))...)
			must[*corev1.Pod](t)(s.create(t.Context(), target))
			tries := 0
			within(t, 60*time.Second, "the server is ready", func(ctx context.Context) error {
				p, err := s.client.CoreV1().Pods(s.name).Get(ctx, target.Name, metav1.GetOptions{})
				if err != nil {
					return err
				}
				if r, err := found(p); err == nil && r.v4.IsValid() {
					for _, protocol := range []string{"tcp", "http", "udp", "ping"} {
						got, _, err := from.try(ctx, attempt{protocol: protocol, to: netip.AddrPortFrom(r.v4, portOf(protocol))})
						if err != nil || got.open() {
							t.Errorf("%s: %s %v, although the policy is older than the pod", protocol, got, err)
						}
						tries++
					}
				}
				if !ready(p) {
					return errors.New(waiting(p))
				}
				return nil
			})
			if tries == 0 {
				t.Error("the server was never tried")
			}
		})
	}
}

func TestChangedLabelsAndPoliciesTakeEffectOnOpenConnections(t *testing.T) {
	w := together(t)
	for name, meshed := range map[string]bool{"meshed": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newField(t, w, "np-live-"+name, meshed)
			label := func(pod, value string) {
				t.Helper()
				patch := fmt.Sprintf(`{"metadata":{"labels":{"door":%q}}}`, value)
				must[*corev1.Pod](t)(f.client.CoreV1().Pods(f.home.name).Patch(t.Context(), pod, types.MergePatchType, []byte(patch), metav1.PatchOptions{}))
			}
			check(t, f.apply(t.Context(), f.home.name, networkPolicy+`  {podSelector: {matchLabels: {app: target}}, ingress: [{from: [{podSelector: {matchLabels: {door: open}}}]}]}`))
			f.stays(t, func(cell) bool { return false })
			label("friend", "open")
			f.stays(t, func(c cell) bool { return c.from == "friend" })

			var conns []net.Conn
			for _, network := range []string{"tcp", "udp"} {
				c := must[net.Conn](t)(f.places["friend"].dial(t.Context(), network, netip.AddrPortFrom(f.server.v4, portOf(network)).String()))
				defer c.Close()
				if got, _, err := echoed(c, patience); err != nil || got != answered {
					t.Fatalf("%s before the change: %s %v", network, got, err)
				}
				conns = append(conns, c)
			}
			label("friend", "shut")
			changed := time.Now()
			check(t, each(conns, func(c net.Conn) error {
				for time.Since(changed) < 10*time.Second {
					// Late answers of a slow machine are answers.
					if got, _, err := echoed(c, 500*time.Millisecond); err != nil {
						return err
					} else if got != answered {
						t.Logf("%s was cut after %s: %s", c.LocalAddr().Network(), time.Since(changed).Round(10*time.Millisecond), got)
						return nil
					}
				}
				return fmt.Errorf("the %s flow goes on 10 s after its label was taken away", c.LocalAddr().Network())
			}))
			f.stays(t, func(cell) bool { return false })
		})
	}
}
