package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	grpcConns   = 4
	grpcWorkers = 16
)

// grpcUnary calls as fast as answers come.
func grpcUnary(ctx context.Context, s *stack, d time.Duration) (metrics, error) {
	return grpcLoad(ctx, s, d, func(ctx context.Context, cc *grpc.ClientConn) (func() error, error) {
		message := bytes.Repeat([]byte("g"), 1024)
		return func() error {
			var answer []byte
			if err := cc.Invoke(ctx, "/bench.Echo/Unary", &message, &answer); err != nil {
				return err
			}
			return same(message, answer)
		}, nil
	})
}

// grpcStream sends a message on a stream when the one before has come back.
func grpcStream(ctx context.Context, s *stack, d time.Duration) (metrics, error) {
	return grpcLoad(ctx, s, d, func(ctx context.Context, cc *grpc.ClientConn) (func() error, error) {
		message := bytes.Repeat([]byte("s"), 1024)
		stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/bench.Echo/Stream")
		if err != nil {
			return nil, err
		}
		return func() error {
			if err := stream.SendMsg(&message); err != nil {
				return err
			}
			var answer []byte
			if err := stream.RecvMsg(&answer); err != nil {
				return err
			}
			return same(message, answer)
		}, nil
	})
}

func same(want, got []byte) error {
	if !bytes.Equal(want, got) {
		return errors.New("the answer is not what was sent")
	}
	return nil
}

func grpcLoad(ctx context.Context, s *stack, d time.Duration, open func(context.Context, *grpc.ClientConn) (func() error, error)) (metrics, error) {
	if !s.grpc.IsValid() {
		return nil, errNotCarried
	}
	ctx, cancel := context.WithTimeout(ctx, warm+d+10*time.Second)
	defer cancel()
	var conns []*grpc.ClientConn
	for range grpcConns {
		cc, err := grpc.NewClient("passthrough:///"+s.grpc.String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})),
			grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) { return dial(ctx, s.netns, a) }))
		if err != nil {
			return nil, err
		}
		defer cc.Close()
		conns = append(conns, cc)
	}
	m := &meter{procs: s.procs}
	var measuring, stopped atomic.Bool
	var mu sync.Mutex
	var all histogram
	var failed error
	var wg sync.WaitGroup
	for i := range grpcWorkers {
		wg.Go(func() {
			var mine histogram
			call, err := open(ctx, conns[i%len(conns)])
			for err == nil && !stopped.Load() {
				start := time.Now()
				err = call()
				if measuring.Load() && err == nil {
					mine.record(time.Since(start))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all.merge(&mine)
			if err != nil {
				failed = err
			}
		})
	}
	time.Sleep(warm)
	m.begin()
	measuring.Store(true)
	time.Sleep(d)
	measuring.Store(false)
	m.end()
	stopped.Store(true)
	wg.Wait()
	if failed != nil {
		return nil, fmt.Errorf("grpc: %w", failed)
	}
	out := metrics{mRate: float64(all.n) / m.took.Seconds()}
	putLatency(out, &all)
	return out, m.put(out, int(all.n))
}
