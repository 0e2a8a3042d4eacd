package verdict

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/policy"
)

// Command is `hauberk policy`.
func Command(env *run.Env) *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Ask who may reach what, and why"}
	c.AddCommand(
		canCommand(env, "can", "Say whether FROM may reach TO, and what decides"),
		canCommand(env, "explain", "Say how that is decided: every tier, policy and rule that is looked at"),
		listCommand(env),
		testCommand(env),
		diffCommand(env),
		simulateCommand(env),
		suggestCommand(env),
		Analyze(env),
	)
	return c
}

// options of can and explain.
type options struct {
	origin
	http     httpFlags
	port     string
	protocol string
	icmpType uint8
	noMTLS   bool
	explain  bool
	timeout  time.Duration
}

func (o *origin) addFlags(c *cobra.Command) {
	c.Flags().StringSliceVarP(&o.files, "filename", "f", nil, "answer from these manifests, or all of a directory, instead of the cluster (- reads the standard input)")
	c.Flags().BoolVar(&o.live, "live", false, "with -f: add the manifests to what the cluster has")
}

func canCommand(env *run.Env, use, short string) *cobra.Command {
	o := &options{explain: use == "explain"}
	c := &cobra.Command{
		Use:   use + " FROM TO",
		Short: short,
		Long: short + `.

FROM and TO are NAMESPACE/NAME (a workload, a pod or the beginning of a pod's name), pod/NAME, deploy/NAME, sa/NAME,
service/NAME (TO only), node/NAME, an IP address or world; KIND/NAME is of the namespace of -n, NAMESPACE/KIND/NAME names
another. No packet is sent: the answer is of the model that kernel rules and sidecars are made from.

Exit code 0 says allowed, 80 denied.`,
		Example: `  hauberk policy ` + use + ` yaobank/customer yaobank/database --port 2379
  hauberk policy ` + use + ` yaobank/sa/summary yaobank/service/database --method PUT --path /v2/keys/a
  hauberk policy ` + use + ` world shop/web --port 8080 -f policies.yaml --live`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), o.timeout)
			defer cancel()
			return can(ctx, env, o, args[0], args[1])
		},
	}
	o.addFlags(c)
	f := c.Flags()
	f.StringVarP(&o.port, "port", "p", "", "destination port, number or name; not needed where there is only one")
	f.StringVar(&o.protocol, "protocol", "tcp", "tcp, udp, sctp, icmp or icmpv6")
	f.Uint8Var(&o.icmpType, "icmp-type", 8, "type of the ICMP message (8: echo request; 128 in ICMPv6)")
	f.StringVar(&o.http.method, "method", "", "HTTP method of the request")
	f.StringVar(&o.http.path, "path", "", "HTTP path of the request")
	f.StringVar(&o.http.host, "host", "", "HTTP host of the request")
	f.StringArrayVar(&o.http.headers, "header", nil, "header of the request, name=value")
	f.BoolVar(&o.noMTLS, "no-mtls", false, "ask for a connection that is not mTLS, even between sidecars")
	if use == "can" {
		f.BoolVar(&o.explain, "explain", false, "show every rule that was looked at")
	}
	f.DurationVar(&o.timeout, "timeout", time.Minute, "how long to read the cluster")
	return c
}

func can(ctx context.Context, env *run.Env, o *options, from, to string) error {
	q := &question{noMTLS: o.noMTLS, trace: o.explain}
	var err error
	if q.protocol, err = parseProtocol(o.protocol); err != nil {
		return err
	}
	if o.http.given() {
		if q.protocol != policy.TCP {
			return run.Fail(run.ExitUsage, "leave --protocol out", "HTTP is on TCP only")
		}
		if q.http, err = o.http.request(); err != nil {
			return err
		}
	}
	w, err := load(ctx, env, o.origin)
	if err != nil {
		return err
	}
	w.warnings(env)
	namespace := env.CurrentNamespace()
	if q.from, err = w.resolve(from, namespace, "", q.protocol, true); err != nil {
		return err
	}
	if q.to, err = w.resolve(to, namespace, o.port, q.protocol, false); err != nil {
		return err
	}
	if err := q.choosePort(o); err != nil {
		return err
	}
	sameFamily(q)
	a := w.decide(q)
	w.others(q, a)
	if w.absent {
		a.note("the mesh is not installed in this cluster: nothing of it enforces this")
	}
	a.APIVersion, a.Kind = run.OutputVersion, "PolicyAnswer"
	if q.http != nil {
		a.Request = strings.TrimSpace(fmt.Sprintf("%s %s %s", q.http.Method, q.http.Path, q.http.Host))
	}
	if done, err := env.Structured(a); err != nil {
		return err
	} else if !done {
		a.print(env)
	}
	if !a.Allowed {
		return run.Told(run.ExitDenied)
	}
	return nil
}

func parseProtocol(text string) (policy.Protocol, error) {
	for _, p := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP, policy.ICMP, policy.ICMPv6} {
		if strings.EqualFold(text, p.String()) {
			return p, nil
		}
	}
	return 0, run.Fail(run.ExitUsage, "use tcp, udp, sctp, icmp or icmpv6", "unknown --protocol %q", text)
}

// choosePort finds the destination port in the pod.
func (q *question) choosePort(o *options) error {
	switch {
	case q.protocol == policy.ICMP || q.protocol == policy.ICMPv6:
		if o.port != "" {
			return run.Fail(run.ExitUsage, "leave --port out; --icmp-type chooses the message", "ICMP has no ports")
		}
		q.icmpType = o.icmpType
		if q.protocol == policy.ICMPv6 && o.icmpType == 8 {
			q.icmpType = 128
		}
		return nil
	case q.to.port != 0:
		q.port = q.to.port
		return nil
	case o.port != "":
		if n, err := strconv.ParseUint(o.port, 10, 16); err == nil && n > 0 {
			q.port = uint16(n)
			return nil
		}
		if q.to.pod != nil {
			if q.port = namedPort(q.to.pod, o.port, q.protocol); q.port != 0 {
				return nil
			}
		}
		return run.Fail(run.ExitBadInput, "give a number from 1 to 65535, or the name of a container's port", "%s has no port %q", q.to, o.port)
	case q.to.pod != nil:
		var offered []string
		for _, p := range q.to.pod.Ports {
			if p.Protocol == q.protocol && !strings.HasPrefix(p.Name, "hauberk-") {
				offered = append(offered, strconv.Itoa(int(p.Port)))
				q.port = p.Port
			}
		}
		if len(offered) == 1 {
			return nil
		}
		mend := "give --port"
		if len(offered) > 1 {
			mend = "its containers name " + strings.Join(offered, ", ")
		}
		return run.Fail(run.ExitUsage, mend, "which port of %s?", q.to)
	}
	return run.Fail(run.ExitUsage, "give --port", "which port of %s?", q.to)
}

// sameFamily gives dual-stack ends addresses of one family: that of the end
// that has only one.
func sameFamily(q *question) {
	from, to := q.from.endpoint.Addr, q.to.endpoint.Addr
	if !from.IsValid() || !to.IsValid() || from.Is4() == to.Is4() {
		return
	}
	for _, pair := range [][2]*end{{q.from, q.to}, {q.to, q.from}} {
		if pair[0].pod == nil {
			continue
		}
		for _, a := range pair[0].pod.Addresses {
			if a.Is4() == pair[1].endpoint.Addr.Is4() {
				pair[0].endpoint.Addr = a
				return
			}
		}
	}
}

func listCommand(env *run.Env) *cobra.Command {
	var from origin
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "list",
		Short: "List all policies with the pods that they select and what is wrong with them",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			w, err := load(ctx, env, from)
			if err != nil {
				return err
			}
			w.warnings(env)
			return w.list(env)
		},
	}
	from.addFlags(c)
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to read the cluster")
	return c
}
